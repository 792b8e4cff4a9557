"""What lorawatch serves over HTTP: ``/metrics``, the health pages and a plain list of the runs.

Import from the modules: this package imports nothing, so that a verb that serves nothing loads no web server.
"""
