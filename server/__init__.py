"""The service: HTTP, database, registry, routing and engine control. Never imports torch."""
