"""Whether members serve: asked again and again, and what follows for new connections.

`states`, `rhythm`, `questions`, `answers`, `slow_start` and `book` are pure; `probes` asks over sockets, and
`monitors` asks everybody in time. Nothing here knows maps, requests or files.
"""
