"""The engine: stores the state, runs reconcile passes, carries out effects, and grants leases."""
