"""An engine in a child process: the client's side, the connection, the frames between, and the child itself."""
