"""The seccomp profile that RuntimeDefault means where a site names none: what a program in a container may ask.

An allow-list: a call that is on none of these lists fails with EPERM (``clone3`` with ENOSYS, so that a C library
falls back to ``clone``, whose flags a filter can see). One that is newer than the lists, or than the libseccomp on a
host, has to fail with ENOSYS, or C libraries would not fall back to older calls: runc sees to it, for others
``refuse_by_name`` turns the default around. It leaves out what reaches beyond the container or is there for the
host's administration: mounts, modules, clocks, keyrings, swap, io_uring, userfaultfd; most of these are allowed again
to a container that has the capability for them anyway. A name that the libseccomp on a host does not know is passed
over by runc and crun.
"""

from collections.abc import Mapping
from typing import Any

_FILES = """
access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr
flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat
getcwd getdents getdents64 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch ioctl
lchown lchown32 lgetxattr link linkat listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat
lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2
pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv removexattr removexattrat rename renameat renameat2
rmdir sendfile sendfile64 setxattr setxattrat splice stat stat64 statfs statfs64 statx symlink symlinkat sync
sync_file_range sync_file_range2 arm_sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat utime
utimensat utimensat_time64 utimes vmsplice write writev
"""

_PROCESSES = """
arch_prctl capget capset execve execveat exit exit_group fork getegid getegid32 geteuid geteuid32 getgid getgid32
getgroups getgroups32 getpgid getpgrp getpid getppid getpriority getresgid getresgid32 getresuid getresuid32 getrlimit
getrusage getsid gettid getuid getuid32 get_thread_area ioprio_get ioprio_set kill landlock_add_rule
landlock_create_ruleset landlock_restrict_self pidfd_open pidfd_send_signal prctl prlimit64 process_mrelease
restart_syscall seccomp set_robust_list get_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid
setfsuid32 setgid setgid32 setgroups setgroups32 setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid
setresuid32 setreuid setreuid32 setrlimit setsid setuid setuid32 tgkill times tkill ugetrlimit uname vfork wait4 waitid
waitpid
"""

_SIGNALS_AND_TIME = """
alarm clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer
gettimeofday nanosleep pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo setitimer sigaltstack signalfd signalfd4 sigprocmask sigreturn
time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64
timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64
"""

_MEMORY_AND_SCHEDULING = """
brk cachestat futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake getcpu madvise map_shadow_stack
membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap mseal msync munlock
munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages rseq sched_get_priority_max
sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield
"""

_WAITING_AND_QUEUES = """
epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2
io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ipc mq_getsetattr mq_notify
mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd
_newselect poll ppoll ppoll_time64 pselect6 pselect6_time64 select semctl semget semop semtimedop semtimedop_time64
shmat shmctl shmdt shmget
"""

_NETWORK_AND_REST = """
accept accept4 bind connect getpeername getrandom getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64
recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair sysinfo
"""

_ALWAYS = " ".join(
    (_FILES, _PROCESSES, _SIGNALS_AND_TIME, _MEMORY_AND_SCHEDULING, _WAITING_AND_QUEUES, _NETWORK_AND_REST)
)

_WITH_CAPABILITY = {
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_ADMIN": """bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick listmount lookup_dcookie mount
        mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns
        statmount syslog umount umount2 unshare""",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "adjtimex clock_adjtime clock_adjtime64 clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYS_NICE": "get_mempolicy mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node",
    "CAP_SYSLOG": "syslog",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
}

_ON_ARCHITECTURE = {
    "amd64": "arch_prctl modify_ldt",
    "x32": "modify_ldt",
    "x86": "modify_ldt",
    "arm": "arm_fadvise64_64 breakpoint cacheflush set_tls",
    "arm64": "arm_fadvise64_64 breakpoint cacheflush set_tls",
    "ppc64le": "swapcontext sync_file_range2",
    "s390x": "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
    "riscv64": "riscv_flush_icache riscv_hwprobe",
}

_REFUSED = " ".join(
    (
        *_WITH_CAPABILITY.values(),
        """
        _sysctl acct add_key afs_syscall bdflush break create_module ftime get_kernel_syms getpmsg gtty idle
        io_uring_enter io_uring_register io_uring_setup kexec_file_load kexec_load keyctl lock modify_ldt mpx nfsservctl
        open_tree_attr pciconfig_iobase pciconfig_read pciconfig_write pivot_root prof profil process_vm_readv
        process_vm_writev ptrace putpmsg query_module request_key rtas security sgetmask ssetmask stty swapoff swapon
        sys_debug_setcontext sysfs tuxcall ulimit uselib userfaultfd ustat vm86 vm86old vserver
        """,
    )
)
"""What Linux 5.16 and older have and the lists above leave out, unless a capability allows it."""

_PTRACE_SAFE_SINCE = "4.8"  # before it, a tracer could change a call after the filter had seen it
_EPERM = 1
_ENOSYS = 38
_AF_VSOCK = 40
_NAMESPACE_FLAGS = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)  # PER_LINUX, PER_LINUX32, UNAME26, and to ask


def _allow(names: str, **conditions: Any) -> dict[str, Any]:
    return {"names": names.split(), "action": "SCMP_ACT_ALLOW", **conditions}


def _argument(index: int, value: int, operator: str, value_two: int = 0) -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": value_two, "op": operator}


def default_profile() -> dict[str, Any]:
    """Return the profile in Docker's JSON form, with its conditions on capabilities, architecture and kernel."""
    without_admin = {"excludes": {"caps": ["CAP_SYS_ADMIN"]}}
    no_namespace = (_NAMESPACE_FLAGS, "SCMP_CMP_MASKED_EQ", 0)
    not_s390 = {"arches": [arch for arch in _ON_ARCHITECTURE if arch != "s390x"]}  # there, flags come second
    rules = [_allow(_ALWAYS)]
    rules += [_allow(names, includes={"caps": [capability]}) for capability, names in _WITH_CAPABILITY.items()]
    rules += [_allow(names, includes={"arches": [arch]}) for arch, names in _ON_ARCHITECTURE.items()]
    rules += [_allow("personality", args=[_argument(0, value, "SCMP_CMP_EQ")]) for value in _PERSONALITIES]
    rules += [
        # vsock reaches past the network namespace to the hypervisor
        _allow("socket", args=[_argument(0, _AF_VSOCK, "SCMP_CMP_NE")]),
        _allow("ptrace process_vm_readv process_vm_writev", includes={"minKernel": _PTRACE_SAFE_SINCE}),
        _allow("clone", args=[_argument(0, *no_namespace)], includes=not_s390, **without_admin),
        _allow("clone", args=[_argument(1, *no_namespace)], includes={"arches": ["s390x"]}, **without_admin),
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS, **without_admin},
    ]
    return {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": _EPERM, "syscalls": rules}


def refuse_by_name(made: Mapping[str, Any]) -> dict[str, Any]:
    """Return a filter made of the profile, with ENOSYS for what it does not name and EPERM for what it refuses.

    ``personality`` with other values than those allowed gives ENOSYS, too: no rule can say "none of these".
    """
    rules = list(made["syscalls"])
    named = {name for rule in rules for name in rule["names"]}
    refused = [name for name in sorted(set(_REFUSED.split())) if name not in named]
    eperm = {"action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM}
    rules += [{"names": refused, **eperm}] if refused else []
    rules.append({"names": ["socket"], **eperm, "args": [_argument(0, _AF_VSOCK, "SCMP_CMP_EQ")]})
    for rule in made["syscalls"]:
        if rule["names"] == ["clone"] and "args" in rule:
            index, flags = rule["args"][0]["index"], _NAMESPACE_FLAGS
            bits = [1 << bit for bit in range(flags.bit_length()) if flags >> bit & 1]
            rules += [
                {"names": ["clone"], **eperm, "args": [_argument(index, bit, "SCMP_CMP_MASKED_EQ", bit)]}
                for bit in bits
            ]
    return {**made, "defaultErrnoRet": _ENOSYS, "syscalls": rules}
