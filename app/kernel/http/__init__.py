"""HTTP: the server, the seven middlewares, problem details, action to route."""
