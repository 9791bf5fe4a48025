"""HTTP: what the controller asks and the operator sees. Reaches the engine by `agent.api.engine_protocols` alone."""
