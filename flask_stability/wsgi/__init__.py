"""The way of one request through WSGI."""
