"""Telemetry of the agent: structured logs, metrics, and the watchdog of the event loop."""
