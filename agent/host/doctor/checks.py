"""Lists of all checks for each operating system."""

from __future__ import annotations

from typing import Final

from agent.host.doctor import network, power, session, software, storage
from agent.host.doctor.model import Check

_DISK: Final = Check("disk-space", "Disk space", "DiskSpaceLow", ("space",), storage.disk_space)
_FILES: Final = Check("open-files", "Open files", "FileLimitLow", ("own_files", "system_files"), software.file_limits)

MAC: Final = (
    Check("hardware", "Hardware", "HardwareUnsupported", ("hardware",), power.hardware),
    Check("macos", "macOS", "MacosUnsupported", ("sw_vers",), software.macos),
    Check("sleep", "Sleep", "SleepEnabled", ("pmset",), power.sleep),
    Check("power-loss", "Power failure", "AutomaticRestartOff", ("pmset",), power.power_loss),
    Check("low-power", "Low power mode", "LowPowerMode", ("pmset",), power.low_power),
    Check("heat", "Heat", "ThermalThrottling", ("thermal",), power.thermal),
    Check("memory", "Memory", "MemoryPressure", ("pressure", "swap", "vm_stat"), power.memory),
    Check("auto-login", "Automatic login", "AutomaticLoginOff", ("loginwindow", "kcpassword"), session.auto_login,
          optional=("autologin",)),
    Check("session", "Session at the screen", "NoUserSession", ("console",), session.console),
    Check("keychain", "Login keychain", "KeychainLocked", (), session.keychain, optional=("keychain",)),
    Check("screen-lock", "Screen lock", "ScreenLockEnabled", ("screenlock",), session.screen_lock),
    Check("local-network", "Local Network privacy", "LocalNetworkDenied", ("sw_vers",), session.local_network,
          optional=("local_network",)),
    Check("filevault", "FileVault", "FileVaultEnabled", ("filevault",), session.filevault),
    Check("updates", "Automatic updates", "AutomaticUpdatesOn", ("updates",), software.updates),
    Check("dhcp-lease-time", "DHCP lease time", "DhcpLeaseTimeLong", ("sharing",), network.dhcp_lease_time),
    Check("dhcp-leases", "DHCP leases", "DhcpExhausted", ("leases",), network.dhcp_leases),
    Check("clock", "Clock", "ClockSkewed", ("sntp",), network.clock),
    _DISK,
    Check("file-system", "File system", "FileSystemUnsupported", ("diskutil",), storage.file_system),
    Check("spotlight", "Spotlight", "SpotlightIndexesVms", ("spotlight",), storage.spotlight),
    Check("time-machine", "Time Machine", "TimeMachineBacksUpVms", ("backups", "snapshots", "excluded"),
          storage.time_machine),
    Check("leaked-vms", "Leaked VMs", "VmProcessesLeaked", ("processes",), software.leaked_vms),
    _FILES,
    Check("sip", "System Integrity Protection", "SipDisabled", ("csrutil",), session.sip),
    Check("tart", "Tart", "TartUnusable", (), software.tart, optional=("tart",)),
    Check("anka", "Anka", "AnkaUnusable", (), software.anka, optional=("anka",)),
    Check("anka-license", "Anka licence", "AnkaLicenseInvalid", ("license",), software.anka_license),
    Check("service", "launchd service", "ServiceNotSupervised", ("service",), software.service),
    Check("hearth", "Hearth", "HearthVersionsDiffer", (), software.hearth, optional=("installed",)),
)  # fmt: skip
"""In the order of the report: machine, session, network, disk, programs."""

LINUX: Final = (
    Check("kvm", "KVM", "KvmUnavailable", ("kvm",), software.kvm),
    Check("qemu", "QEMU", "QemuUnusable", (), software.qemu, optional=("qemu",)),
    Check("clock", "Clock", "ClockSkewed", ("timedatectl",), network.clock_on_linux),
    _DISK,
    _FILES,
)
