"""The composition root: configuration to slots to services to server; the only place where parts are wired."""
