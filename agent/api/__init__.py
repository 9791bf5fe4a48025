"""The HTTP API and the status page. They use the engine by `agent.api.engine_protocols` only."""
