"""Every check, by system."""

from __future__ import annotations

from typing import Final

from agent.host.doctor import network, power, session, software, storage
from agent.host.doctor.model import Check

_DISK: Final = Check("disk-space", "Disk space", "DiskShort", ("space",), storage.disk_space)
_FILES: Final = Check("open-files", "Open files", "FileLimitLow", ("own_files", "system_files"), software.file_limits)

MAC: Final = (
    Check("hardware", "Hardware", "HardwareUnfit", ("hardware",), power.hardware),
    Check("macos", "macOS", "MacosUnfit", ("sw_vers",), software.macos),
    Check("sleep", "Sleep", "HostSleeps", ("pmset",), power.sleep),
    Check("power-loss", "Power failure", "StaysOffAfterPowerLoss", ("pmset",), power.power_loss),
    Check("low-power", "Low power mode", "LowPowerMode", ("pmset",), power.low_power),
    Check("heat", "Heat", "HeatThrottles", ("thermal",), power.thermal),
    Check("memory", "Memory", "MemoryPressure", ("pressure", "swap", "vm_stat"), power.memory),
    Check("auto-login", "Automatic login", "NoAutoLogin", ("loginwindow", "kcpassword"), session.auto_login,
          optional=("autologin",)),
    Check("session", "Session at the screen", "NoUserSession", ("console",), session.console),
    Check("keychain", "Login keychain", "KeychainLocked", (), session.keychain, optional=("keychain",)),
    Check("screen-lock", "Screen lock", "ScreenLocks", ("screenlock",), session.screen_lock),
    Check("local-network", "Local Network privacy", "LocalNetworkDenied", ("sw_vers",), session.local_network,
          optional=("local_network",)),
    Check("filevault", "FileVault", "FileVaultOn", ("filevault",), session.filevault),
    Check("updates", "Automatic updates", "UpdatesItself", ("updates",), software.updates),
    Check("dhcp-lease-time", "DHCP lease time", "DhcpLeasesLong", ("sharing",), network.dhcp_lease_time),
    Check("dhcp-leases", "DHCP leases", "DhcpExhausted", ("leases",), network.dhcp_leases),
    Check("clock", "Clock", "ClockWrong", ("sntp",), network.clock),
    _DISK,
    Check("file-system", "File system", "FileSystemUnfit", ("diskutil",), storage.file_system),
    Check("spotlight", "Spotlight", "SpotlightReadsVms", ("spotlight",), storage.spotlight),
    Check("time-machine", "Time Machine", "TimeMachineKeepsVms", ("backups", "snapshots", "excluded"),
          storage.time_machine),
    Check("leaked-vms", "Leaked VMs", "VmProcessesLeaked", ("processes",), software.leaked_vms),
    _FILES,
    Check("sip", "System Integrity Protection", "SipOff", ("csrutil",), session.sip),
    Check("tart", "Tart", "TartUnfit", (), software.tart, optional=("tart",)),
    Check("anka", "Anka", "AnkaUnfit", (), software.anka, optional=("anka",)),
    Check("anka-license", "Anka licence", "AnkaLicenseInvalid", ("license",), software.anka_license),
    Check("service", "launchd service", "ServiceNotKept", ("service",), software.service),
    Check("hearth", "Hearth", "HearthVersionsDiffer", (), software.hearth, optional=("installed",)),
)  # fmt: skip
"""In the order of the report: the machine, its session, its network, its disk, its programs."""

LINUX: Final = (
    Check("kvm", "KVM", "NoKvm", ("kvm",), software.kvm),
    Check("qemu", "QEMU", "QemuUnfit", (), software.qemu, optional=("qemu",)),
    Check("clock", "Clock", "ClockWrong", ("timedatectl",), network.clock_on_linux),
    _DISK,
    _FILES,
)
