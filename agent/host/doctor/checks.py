"""Lists of all checks for each operating system."""

from __future__ import annotations

from typing import Final

from agent.host.doctor import network, power, session, software, storage
from agent.host.doctor.model import Check

_DISK: Final = Check("disk-space", "Disk space", "DiskSpaceLow", ("space",), storage.check_disk_space)
_FILES: Final = Check(
    "open-files", "Open files", "FileLimitLow", ("own_files", "system_files"), software.check_file_limits
)

MAC: Final = (
    Check("hardware", "Hardware", "HardwareUnsupported", ("hardware",), power.check_hardware),
    Check("macos", "macOS", "MacosUnsupported", ("sw_vers",), software.check_macos),
    Check("sleep", "Sleep", "SleepEnabled", ("pmset",), power.check_sleep),
    Check("power-loss", "Power failure", "AutomaticRestartOff", ("pmset",), power.check_power_loss),
    Check("low-power", "Low power mode", "LowPowerMode", ("pmset",), power.check_low_power),
    Check("heat", "Heat", "ThermalThrottling", ("thermal",), power.check_thermal),
    Check("memory", "Memory", "MemoryPressure", ("pressure", "swap", "vm_stat"), power.check_memory),
    Check("auto-login", "Automatic login", "AutomaticLoginOff", ("loginwindow", "kcpassword"), session.check_auto_login,
          optional=("autologin",)),
    Check("session", "Session at the screen", "NoUserSession", ("console",), session.check_console),
    Check("keychain", "Login keychain", "KeychainLocked", (), session.check_keychain, optional=("keychain",)),
    Check("screen-lock", "Screen lock", "ScreenLockEnabled", ("screenlock",), session.check_screen_lock),
    Check("local-network", "Local Network privacy", "LocalNetworkDenied", ("sw_vers",), session.check_local_network,
          optional=("local_network",)),
    Check("filevault", "FileVault", "FileVaultEnabled", ("filevault",), session.check_filevault),
    Check("updates", "Automatic updates", "AutomaticUpdatesOn", ("updates",), software.check_updates),
    Check("dhcp-lease-time", "DHCP lease time", "DhcpLeaseTimeLong", ("sharing",), network.check_dhcp_lease_time),
    Check("dhcp-leases", "DHCP leases", "DhcpExhausted", ("leases",), network.check_dhcp_leases),
    Check("clock", "Clock", "ClockSkewed", ("sntp",), network.check_clock),
    _DISK,
    Check("file-system", "File system", "FileSystemUnsupported", ("diskutil",), storage.check_file_system),
    Check("spotlight", "Spotlight", "SpotlightIndexesVms", ("spotlight",), storage.check_spotlight),
    Check("time-machine", "Time Machine", "TimeMachineBacksUpVms", ("backups", "snapshots", "excluded"),
          storage.check_time_machine),
    Check("leaked-vms", "Leaked VMs", "VmProcessesLeaked", ("processes",), software.check_leaked_vms),
    _FILES,
    Check("sip", "System Integrity Protection", "SipDisabled", ("csrutil",), session.check_sip),
    Check("tart", "Tart", "TartUnusable", (), software.check_tart, optional=("tart",)),
    Check("anka", "Anka", "AnkaUnusable", (), software.check_anka, optional=("anka",)),
    Check("anka-license", "Anka licence", "AnkaLicenseInvalid", ("license",), software.check_anka_license),
    Check("service", "launchd service", "ServiceNotSupervised", ("service",), software.check_service),
    Check("hearth", "Hearth", "HearthVersionsDiffer", (), software.check_hearth, optional=("installed",)),
)  # fmt: skip
"""In the order of the report: machine, session, network, disk, programs."""

LINUX: Final = (
    Check("kvm", "KVM", "KvmUnavailable", ("kvm",), software.check_kvm),
    Check("qemu", "QEMU", "QemuUnusable", (), software.check_qemu, optional=("qemu",)),
    Check("clock", "Clock", "ClockSkewed", ("timedatectl",), network.check_clock_on_linux),
    _DISK,
    _FILES,
)
