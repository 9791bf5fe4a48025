"""The program `anka`, which the hypervisor driver and the image store share."""
