"""The modules of the simulated `tart`. Its state has the layout of Tart's, and its behaviour follows Tart exactly.

    $TART_HOME/{vms,cache,tmp}   Tart's own layout, locks included
    $TART_HOME/.simulator/       what a Mac keeps elsewhere: the kernel's VM slots, DHCP leases, guests, faults

A VM is two processes, as on a Mac: `tart run`, which holds the lock on `config.json` and proxies `control.sock`, and a
`com.apple.Virtualization.VirtualMachine` that dies with it, holds a slot, and serves the guest's ports on an address
of its own in 127.0.0.0/8. Each quirk names its number in docs/mac-contracts.md, which names its source.

It imports little, and only from the standard library: the agent runs this program for every query.
"""
