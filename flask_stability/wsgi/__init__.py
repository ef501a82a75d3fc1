"""The path of one request: the layer around the app, the record of its request and response, and WSGI's rules."""
