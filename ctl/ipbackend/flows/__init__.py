"""The flow log: which connections there were, from the data plane's events to whoever asks later."""
