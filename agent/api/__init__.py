"""HTTP: what the controller asks and the operator sees. Reaches the engine by `agent.api.ports` alone."""
