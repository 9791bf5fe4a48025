"""What the simulated `tart` is made of. It keeps its state where Tart does, and follows Tart to the letter.

    $TART_HOME/{vms,cache,tmp}   Tart's own layout, locks included
    $TART_HOME/.simulator/       what a Mac keeps elsewhere: the kernel's VM slots, DHCP leases, guests, faults

A VM is two processes, as on a Mac: `tart run`, which holds the lock on `config.json` and proxies `control.sock`, and a
`com.apple.Virtualization.VirtualMachine` that dies with it, holds a slot, and serves the guest's ports on an address
of its own in 127.0.0.0/8. Each quirk names its number in docs/mac-contracts.md, which names its source.

Only the standard library is used, and little of it: the agent runs this for every question it asks.
"""
