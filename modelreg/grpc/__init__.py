"""gRPC's own terms, for both sides of a connection."""
