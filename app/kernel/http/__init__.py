"""HTTP: the server, the seven middlewares, problem details, use case to route."""
