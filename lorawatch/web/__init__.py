"""What lorawatch serves over HTTP."""
