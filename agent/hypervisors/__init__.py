"""The hypervisor contract, its drivers, and the two modules every driver starts processes through."""
