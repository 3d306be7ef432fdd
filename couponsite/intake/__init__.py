"""The intake: the ASGI server of the public port, which answers the crowd itself and forwards the rest to the site."""
