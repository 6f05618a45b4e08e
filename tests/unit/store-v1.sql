-- A store of schema 1, as it was written then.
PRAGMA application_id = 1229996613;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE changes (
        revision INTEGER NOT NULL REFERENCES revisions ON DELETE CASCADE,
        id TEXT NOT NULL,
        section TEXT NOT NULL,
        parent TEXT,
        position INTEGER NOT NULL,
        label TEXT NOT NULL,
        before TEXT,                   -- JSON, or NULL: it was not there
        after TEXT                     -- JSON, or NULL: it is gone
    );
INSERT INTO "changes" VALUES(1,'gateway','gateway',NULL,0,'',NULL,'{"interfaces":["eth0","eth1"],"snat_addresses":["10.0.0.101","10.0.0.102","10.0.0.103","10.0.0.104"],"snat_interface":"eth1","max_connections":1000000,"attach_mode":"auto","syn_sent_timeout":5,"syn_received_timeout":15,"closing_timeout":15,"rest":60,"half_open_percent":10,"private_ranges":["10.0.0.0/8","172.16.0.0/12","192.168.0.0/16"]}');
INSERT INTO "changes" VALUES(1,'vpc','networks',NULL,0,'vpc',NULL,'{"name":"vpc","kind":"local","cidrs":["10.0.0.0/24"],"interface":"eth1","next_hop":null,"description":""}');
INSERT INTO "changes" VALUES(1,'shop','load_balancers',NULL,0,'shop',NULL,'{"name":"shop","vip":"10.0.0.100","interface":"eth0","ip_target_enable":true,"deletion_protection_enable":false,"description":"first"}');
INSERT INTO "changes" VALUES(1,'office','load_balancers',NULL,0,'office',NULL,'{"name":"office","vip":"10.0.0.110","interface":"eth0","ip_target_enable":true,"deletion_protection_enable":false,"description":""}');
INSERT INTO "changes" VALUES(1,'web','pools',NULL,0,'web',NULL,'{"name":"web","protocol":"TCP","algorithm":"ROUND_ROBIN","load_balancer":"shop","member_deletion_protection_enable":false,"description":""}');
INSERT INTO "changes" VALUES(1,'m11','members','web',0,'10.0.0.11:8080 of web',NULL,'{"address":"10.0.0.11","port":8080,"weight":3,"max_connections":100000,"name":""}');
INSERT INTO "changes" VALUES(1,'m12','members','web',0,'10.0.0.12:8080 of web',NULL,'{"address":"10.0.0.12","port":8080,"weight":1,"max_connections":100000,"name":""}');
INSERT INTO "changes" VALUES(1,'m13','members','web',0,'10.0.0.13:8080 of web',NULL,'{"address":"10.0.0.13","port":8080,"weight":1,"max_connections":100000,"name":"third"}');
INSERT INTO "changes" VALUES(1,'shared','pools',NULL,0,'shared',NULL,'{"name":"shared","protocol":"TCP","algorithm":"ROUND_ROBIN","load_balancer":null,"member_deletion_protection_enable":false,"description":""}');
INSERT INTO "changes" VALUES(1,'s11','members','shared',0,'10.0.0.11:8080 of shared',NULL,'{"address":"10.0.0.11","port":8080,"weight":1,"max_connections":100000,"name":""}');
INSERT INTO "changes" VALUES(1,'m14','members','shared',0,'10.0.0.14:8080 of shared',NULL,'{"address":"10.0.0.14","port":8080,"weight":1,"max_connections":100000,"name":""}');
INSERT INTO "changes" VALUES(1,'http','listeners',NULL,0,'http',NULL,'{"name":"http","load_balancer":"shop","protocol":"TCP","port":80,"pool":"web","idle_timeout":300,"description":""}');
INSERT INTO "changes" VALUES(1,'api','listeners',NULL,0,'api',NULL,'{"name":"api","load_balancer":"shop","protocol":"TCP","port":81,"pool":"shared","idle_timeout":300,"description":""}');
INSERT INTO "changes" VALUES(1,'intranet','listeners',NULL,0,'intranet',NULL,'{"name":"intranet","load_balancer":"office","protocol":"TCP","port":80,"pool":"shared","idle_timeout":300,"description":""}');
INSERT INTO "changes" VALUES(1,'check','health_monitors',NULL,0,'check',NULL,'{"pool":"web","type":"TCP","delay":5,"timeout":3,"max_retries":3,"max_retries_down":3,"monitor_port":null,"enabled":false,"name":""}');
INSERT INTO "changes" VALUES(1,'offices','ip_groups',NULL,0,'offices',NULL,'{"name":"offices","entries":[{"cidr":"198.51.100.0/24","description":"north"}],"description":""}');
INSERT INTO "changes" VALUES(2,'shop','load_balancers',NULL,2,'shop','{"name":"shop","vip":"10.0.0.100","interface":"eth0","ip_target_enable":true,"deletion_protection_enable":false,"description":"first"}','{"name":"shop","vip":"10.0.0.100","interface":"eth0","ip_target_enable":true,"deletion_protection_enable":false,"description":""}');
CREATE TABLE resources (
        id TEXT PRIMARY KEY,
        section TEXT NOT NULL,
        parent TEXT,                   -- the pool of a member
        position INTEGER NOT NULL,     -- resources of a section, and members of a pool, are in this order
        body TEXT NOT NULL,            -- JSON
        created_at TEXT NOT NULL,
        updated_at TEXT NOT NULL
    ) WITHOUT ROWID;
INSERT INTO "resources" VALUES('api','listeners',NULL,7,'{"name":"api","load_balancer":"shop","protocol":"TCP","port":81,"pool":"shared","idle_timeout":300,"description":""}','2026-11-25T14:12:48Z','2026-11-25T14:12:48Z');
INSERT INTO "resources" VALUES('check','health_monitors',NULL,9,'{"pool":"web","type":"TCP","delay":5,"timeout":3,"max_retries":3,"max_retries_down":3,"monitor_port":null,"enabled":false,"name":""}','2026-11-25T14:12:48Z','2026-11-25T14:12:48Z');
INSERT INTO "resources" VALUES('gateway','gateway',NULL,0,'{"interfaces":["eth0","eth1"],"snat_addresses":["10.0.0.101","10.0.0.102","10.0.0.103","10.0.0.104"],"snat_interface":"eth1","max_connections":1000000,"attach_mode":"auto","syn_sent_timeout":5,"syn_received_timeout":15,"closing_timeout":15,"rest":60,"half_open_percent":10,"private_ranges":["10.0.0.0/8","172.16.0.0/12","192.168.0.0/16"]}','2026-11-25T14:12:48Z','2026-11-25T14:12:48Z');
INSERT INTO "resources" VALUES('http','listeners',NULL,6,'{"name":"http","load_balancer":"shop","protocol":"TCP","port":80,"pool":"web","idle_timeout":300,"description":""}','2026-11-25T14:12:48Z','2026-11-25T14:12:48Z');
INSERT INTO "resources" VALUES('intranet','listeners',NULL,8,'{"name":"intranet","load_balancer":"office","protocol":"TCP","port":80,"pool":"shared","idle_timeout":300,"description":""}','2026-11-25T14:12:48Z','2026-11-25T14:12:48Z');
INSERT INTO "resources" VALUES('m11','members','web',11,'{"address":"10.0.0.11","port":8080,"weight":3,"max_connections":100000,"name":""}','2026-11-25T14:12:48Z','2026-11-25T14:12:48Z');
INSERT INTO "resources" VALUES('m12','members','web',12,'{"address":"10.0.0.12","port":8080,"weight":1,"max_connections":100000,"name":""}','2026-11-25T14:12:48Z','2026-11-25T14:12:48Z');
INSERT INTO "resources" VALUES('m13','members','web',13,'{"address":"10.0.0.13","port":8080,"weight":1,"max_connections":100000,"name":"third"}','2026-11-25T14:12:48Z','2026-11-25T14:12:48Z');
INSERT INTO "resources" VALUES('m14','members','shared',15,'{"address":"10.0.0.14","port":8080,"weight":1,"max_connections":100000,"name":""}','2026-11-25T14:12:48Z','2026-11-25T14:12:48Z');
INSERT INTO "resources" VALUES('office','load_balancers',NULL,3,'{"name":"office","vip":"10.0.0.110","interface":"eth0","ip_target_enable":true,"deletion_protection_enable":false,"description":""}','2026-11-25T14:12:48Z','2026-11-25T14:12:48Z');
INSERT INTO "resources" VALUES('offices','ip_groups',NULL,10,'{"name":"offices","entries":[{"cidr":"198.51.100.0/24","description":"north"}],"description":""}','2026-11-25T14:12:48Z','2026-11-25T14:12:48Z');
INSERT INTO "resources" VALUES('s11','members','shared',14,'{"address":"10.0.0.11","port":8080,"weight":1,"max_connections":100000,"name":""}','2026-11-25T14:12:48Z','2026-11-25T14:12:48Z');
INSERT INTO "resources" VALUES('shared','pools',NULL,5,'{"name":"shared","protocol":"TCP","algorithm":"ROUND_ROBIN","load_balancer":null,"member_deletion_protection_enable":false,"description":""}','2026-11-25T14:12:48Z','2026-11-25T14:12:48Z');
INSERT INTO "resources" VALUES('shop','load_balancers',NULL,2,'{"name":"shop","vip":"10.0.0.100","interface":"eth0","ip_target_enable":true,"deletion_protection_enable":false,"description":""}','2026-11-25T14:12:48Z','2026-11-25T14:12:48Z');
INSERT INTO "resources" VALUES('vpc','networks',NULL,1,'{"name":"vpc","kind":"local","cidrs":["10.0.0.0/24"],"interface":"eth1","next_hop":null,"description":""}','2026-11-25T14:12:48Z','2026-11-25T14:12:48Z');
INSERT INTO "resources" VALUES('web','pools',NULL,4,'{"name":"web","protocol":"TCP","algorithm":"ROUND_ROBIN","load_balancer":"shop","member_deletion_protection_enable":false,"description":""}','2026-11-25T14:12:48Z','2026-11-25T14:12:48Z');
CREATE TABLE revisions (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        time TEXT NOT NULL,
        author TEXT NOT NULL,
        summary TEXT NOT NULL
    );
INSERT INTO "revisions" VALUES(1,'2026-11-25T14:12:48Z','root','1 gateway added; 1 network added; 2 load balancers added; 2 pools added; 5 members added; 3 listeners added; 1 health monitor added; 1 ip group added');
INSERT INTO "revisions" VALUES(2,'2026-11-25T14:12:48Z','ops','load balancer shop changed: description first → none');
CREATE INDEX changes_by_revision ON changes (revision);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('revisions',2);
COMMIT;
