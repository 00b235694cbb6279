"""The interface's messages and purerpc stubs, generated from ``proto/`` by ``proto/generate.py``; nobody edits them."""
