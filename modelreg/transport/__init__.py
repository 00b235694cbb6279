"""gRPC over HTTP/2 on Trio: frames, streams, windows, deadlines. Knows nothing of models.

`core` is the protocol without I/O and says how the parts fit together, `connection` has the tasks around it, `server`
accepts. Frames, header blocks and faults are the client's, too.
"""
