"""The domain: models, versions, their numbers, lookups and watches. It knows of no socket, no protobuf and no path."""
