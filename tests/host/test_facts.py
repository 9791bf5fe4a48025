RECORDINGS = ("ioreg_platform.txt",)
