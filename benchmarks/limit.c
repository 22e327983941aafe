/*
 * The physical limit: a crate on the host's root with its default set-up, in bare system calls.
 *
 * limit COUNT PROGRAM [PATH...]
 *
 * It makes COUNT crates one after another, each of them fresh, runs PROGRAM in each, reads what it used, and removes
 * the crate. For each it prints the nanoseconds. Each PATH is shown again where a private directory covers it, as the
 * project and the interpreter are; the first of them is bound writable, as pytest's basetemp is.
 *
 * What is done is what pytest_crate does by default, as root, on cgroup v1: the same namespaces, the same kinds of
 * mounts, the same files of the cgroups; a process "init" with pid 1 outside the measured cgroup, and one "payload"
 * inside it, in a user namespace of its own, without capabilities but the default ones, behind a seccomp filter.
 * What is left out is all that needs no system call.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Older C libraries lack the wrappers and some names; the numbers are the same on every machine. */
enum { NR_open_tree = 428, NR_move_mount = 429, NR_clone3 = 435, NR_close_range = 436, NR_mount_setattr = 442 };
enum { ATTR_RDONLY = 1, ATTR_NOSUID = 2, ATTR_NODEV = 4, ATTR_NOEXEC = 8 };
enum { TREE_CLONE = 1, EMPTY_PATH = 0x1000, RECURSIVE = 0x8000, FROM_EMPTY_PATH = 4 };
enum { NEW_CGROUP = 0x02000000, NEW_UTS = 0x04000000, NEW_IPC = 0x08000000, NEW_USER = 0x10000000 };
enum { NEW_PID = 0x20000000, NEW_NET = 0x40000000, NEW_NS = 0x00020000 };

struct attributes {
    uint64_t set, clear, propagation, user_namespace;
};

struct clone3_arguments {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
};

#define SAFE (MS_NOSUID | MS_NODEV)
#define SEALED (ATTR_RDONLY | ATTR_NOSUID | ATTR_NOEXEC)
#define MAX_PATHS 32
#define MAX_HIERARCHIES 8

static char hierarchies[MAX_HIERARCHIES][4200]; /* the run's directory in each */
static int hierarchy_count;
static pid_t self;
static int of_memory = -1, of_cpu = -1, of_cpuacct = -1, of_pids = -1;
static int user_namespace;
static int last_capability;
static char *home;
static char *paths[MAX_PATHS];
static int path_count;
static int trees[MAX_PATHS];

static char *in_leaf(int hierarchy, const char *name)
{
    static char path[4400];
    snprintf(path, sizeof path, "%s/leaf%s%s", hierarchies[hierarchy], name[0] ? "/" : "", name);
    return path;
}

static void fail(const char *what)
{
    fprintf(stderr, "limit: %s: %s\n", what, strerror(errno));
    if (getpid() == self)
        for (int i = 0; i < hierarchy_count; i++) {
            rmdir(in_leaf(i, ""));
            rmdir(hierarchies[i]);
        }
    _exit(1);
}

static long must(long result, const char *what)
{
    if (result < 0)
        fail(what);
    return result;
}

static pid_t fork_into(uint64_t flags)
{
    struct clone3_arguments arguments = {.flags = flags, .exit_signal = SIGCHLD};
    return must(syscall(NR_clone3, &arguments, sizeof arguments), "clone3");
}

static void write_text(const char *path, const char *text)
{
    int file = must(open(path, O_WRONLY | O_CLOEXEC), path);
    must(write(file, text, strlen(text)), path);
    close(file);
}

static void read_text(const char *path, char *text, size_t size)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = file < 0 ? 0 : read(file, text, size - 1);
    text[length > 0 ? length : 0] = 0;
    if (file >= 0)
        close(file);
}

/* -- cgroups ------------------------------------------------------------------------------------- */

static int find_hierarchy(const char *controller)
{
    char membership[8192], path[256] = "", *line, *save;
    read_text("/proc/self/cgroup", membership, sizeof membership);
    for (line = strtok_r(membership, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *names = strchr(line, ':'), *place = names ? strchr(names + 1, ':') : NULL, *name, *rest;
        if (!place)
            continue;
        *place++ = 0;
        for (name = strtok_r(names + 1, ",", &rest); name; name = strtok_r(NULL, ",", &rest))
            if (!strcmp(name, controller))
                snprintf(path, sizeof path, "%s", strcmp(place, "/") ? place : "");
    }
    char directory[400], real[4096];
    snprintf(directory, sizeof directory, "/sys/fs/cgroup/%s%s", controller, path);
    if (!realpath(directory, real)) {
        fprintf(stderr, "limit: no %s controller of cgroup v1 at %s\n", controller, directory);
        exit(2);
    }
    char run[4200];
    snprintf(run, sizeof run, "%s/pytest-crate-limit-%d", real, self);
    for (int i = 0; i < hierarchy_count; i++)
        if (!strcmp(hierarchies[i], run))
            return i;
    strcpy(hierarchies[hierarchy_count], run);
    must(mkdir(run, 0755), run);
    return hierarchy_count++;
}

static void make_leaf(int tasks[])
{
    for (int i = 0; i < hierarchy_count; i++)
        must(mkdir(in_leaf(i, ""), 0755), "mkdir of a cgroup");
    write_text(in_leaf(of_memory, "memory.limit_in_bytes"), "268435456");
    if (!access(in_leaf(of_memory, "memory.memsw.limit_in_bytes"), W_OK))
        write_text(in_leaf(of_memory, "memory.memsw.limit_in_bytes"), "268435456");
    write_text(in_leaf(of_cpu, "cpu.cfs_period_us"), "100000");
    write_text(in_leaf(of_cpu, "cpu.cfs_quota_us"), "200000");
    write_text(in_leaf(of_pids, "pids.max"), "128");
    for (int i = 0; i < hierarchy_count; i++)
        tasks[i] = must(open(in_leaf(i, "tasks"), O_WRONLY | O_CLOEXEC), "open tasks");
}

static void account(void)
{
    static const char *const memory[] = {"memory.max_usage_in_bytes", "memory.stat", "memory.oom_control",
                                         "memory.failcnt"};
    static const char *const cpuacct[] = {"cpuacct.usage", "cpuacct.usage_user", "cpuacct.usage_sys"};
    static const char *const pids[] = {"pids.peak", "pids.events"};
    char text[8192];
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++)
        read_text(in_leaf(of_memory, memory[i]), text, sizeof text);
    for (size_t i = 0; i < sizeof cpuacct / sizeof *cpuacct; i++)
        read_text(in_leaf(of_cpuacct, cpuacct[i]), text, sizeof text);
    for (size_t i = 0; i < sizeof pids / sizeof *pids; i++)
        read_text(in_leaf(of_pids, pids[i]), text, sizeof text);
    read_text(in_leaf(of_cpu, "cpu.stat"), text, sizeof text);
}

static void remove_directory(const char *path)
{
    /* A task that has been reaped may still have to be unlinked from its cgroup. */
    struct timespec pause = {.tv_nsec = 100000};
    for (int tries = 0; rmdir(path) < 0; tries++) {
        if (errno != EBUSY || tries > 20000)
            fail(path);
        nanosleep(&pause, NULL);
    }
}

/* -- the root ------------------------------------------------------------------------------------ */

static int private_count;

static char *new_private(int mode)
{
    static char path[32];
    snprintf(path, sizeof path, "/private/%d", ++private_count);
    must(mkdir(path, 0700), path);
    must(chmod(path, mode), path);
    return path;
}

static void bind_mount(const char *from, const char *to, unsigned long more)
{
    must(mount(from, to, NULL, MS_BIND | more, NULL), to);
}

static void restrict_mount(const char *path, uint64_t set, int recursive)
{
    struct attributes attributes = {.set = set};
    must(syscall(NR_mount_setattr, AT_FDCWD, path, recursive ? RECURSIVE : 0, &attributes, sizeof attributes), path);
}

static void in_root(char *path, size_t size, const char *place)
{
    snprintf(path, size, "/root%s", place);
}

static void make_places(const char *place)
{
    char path[4096];
    in_root(path, sizeof path, place);
    for (char *slash = path + 6; (slash = strchr(slash, '/')); *slash++ = '/') {
        *slash = 0;
        mkdir(path, 0755);
    }
    mkdir(path, 0755);
}

static void overlay_root(void)
{
    struct stat status;
    must(mkdir("/private/layer", 0700), "mkdir");
    must(mkdir("/private/layer/upper", 0755), "mkdir");
    must(mkdir("/private/layer/work", 0755), "mkdir");
    must(stat("/host", &status), "stat /");
    must(chmod("/private/layer/upper", status.st_mode & 07777), "chmod");
    must(mount("crate", "/root", "overlay", SAFE,
               "lowerdir=/host,upperdir=/private/layer/upper,workdir=/private/layer/work,redirect_dir=on"),
         "mount the overlay");
}

static void write_names(void)
{
    char hosts[65536];
    read_text("/root/etc/hosts", hosts, sizeof hosts - 32);
    strcat(hosts, "127.0.0.1\tcrate\n");
    const char *const texts[][2] = {{"/root/etc/hosts", hosts}, {"/root/etc/hostname", "crate\n"}};
    for (int i = 0; i < 2; i++) {
        unlink(texts[i][0]);
        int file = must(open(texts[i][0], O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644), texts[i][0]);
        must(write(file, texts[i][1], strlen(texts[i][1])), texts[i][0]);
        close(file);
    }
}

static void mask(const char *path, const char *empty)
{
    struct stat status;
    if (stat(path, &status) < 0)
        return;
    bind_mount(S_ISDIR(status.st_mode) ? empty : "/host/dev/null", path, 0);
    restrict_mount(path, SEALED, 0);
}

static void kernel_parts(void)
{
    static const char *const masked[] = {"acpi", "asound",      "interrupts", "kcore",      "keys",
                                         "latency_stats", "sched_debug", "scsi", "timer_list", "timer_stats"};
    static const char *const protected[] = {"bus", "fs", "irq", "sys", "sysrq-trigger"};
    static const char *const nodes[] = {"null", "zero", "full", "random", "urandom", "tty"};
    static const char *const links[][2] = {{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"},
                                           {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"},
                                           {"ptmx", "pts/ptmx"}};
    char path[128], empty[32], from[64];
    must(mount("proc", "/root/proc", "proc", SAFE | MS_NOEXEC, NULL), "mount proc");
    strcpy(empty, new_private(0555));
    for (size_t i = 0; i < sizeof masked / sizeof *masked; i++) {
        snprintf(path, sizeof path, "/root/proc/%s", masked[i]);
        mask(path, empty);
    }
    for (size_t i = 0; i < sizeof protected / sizeof *protected; i++) {
        snprintf(path, sizeof path, "/root/proc/%s", protected[i]);
        if (access(path, F_OK))
            continue;
        bind_mount(path, path, MS_REC);
        restrict_mount(path, ATTR_RDONLY, 1);
    }
    must(mount("sysfs", "/root/sys", "sysfs", SAFE | MS_NOEXEC | MS_RDONLY, NULL), "mount sysfs");
    strcpy(empty, new_private(0555));
    mask("/root/sys/firmware", empty);

    char devices[32];
    strcpy(devices, new_private(0755));
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++) {
        snprintf(path, sizeof path, "%s/%s", devices, nodes[i]);
        snprintf(from, sizeof from, "/host/dev/%s", nodes[i]);
        close(must(open(path, O_CREAT | O_EXCL | O_CLOEXEC, 0666), path));
        bind_mount(from, path, 0);
        restrict_mount(path, SEALED, 0);
    }
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
        snprintf(path, sizeof path, "%s/%s", devices, links[i][0]);
        must(symlink(links[i][1], path), path);
    }
    snprintf(path, sizeof path, "%s/shm", devices);
    must(mkdir(path, 01777), path);
    snprintf(path, sizeof path, "%s/pts", devices);
    must(mkdir(path, 0755), path);
    must(mount("devpts", path, "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"), path);
    snprintf(path, sizeof path, "%s/mqueue", devices);
    must(mkdir(path, 01777), path);
    must(mount("mqueue", path, "mqueue", SAFE | MS_NOEXEC, NULL), path);
    bind_mount(devices, "/root/dev", MS_REC);
}

static void private_places(void)
{
    const char *const places[] = {"/tmp", "/var/tmp", "/run", home};
    char path[4096];
    for (int i = 0; i < 4; i++) {
        in_root(path, sizeof path, places[i]);
        if (!access(path, F_OK))
            bind_mount(new_private(i < 2 ? 01777 : 0755), path, 0);
    }
    for (int i = 0; i < path_count; i++) {
        make_places(paths[i]);
        in_root(path, sizeof path, paths[i]);
        must(syscall(NR_move_mount, trees[i], "", AT_FDCWD, path, FROM_EMPTY_PATH), "move_mount");
        close(trees[i]);
        if (i == 0)
            restrict_mount(path, ATTR_NOSUID | ATTR_NODEV, 1);
    }
}

static void build_root(void)
{
    char path[4096];
    must(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL), "make mounts private");
    must(mount("crate", "/tmp", "tmpfs", SAFE, "mode=0755"), "mount the private layer");
    must(mkdir("/tmp/host", 0755) | mkdir("/tmp/root", 0755) | mkdir("/tmp/private", 0700), "mkdir");
    must(syscall(SYS_pivot_root, "/tmp", "/tmp/host"), "pivot_root");
    must(chdir("/"), "chdir");
    umask(0022);
    overlay_root();
    write_names();
    for (int i = 0; i < path_count; i++) {
        /* The first is the host's own; the others are seen through the overlay. */
        snprintf(path, sizeof path, "/%s%s", i == 0 ? "host" : "root", paths[i]);
        trees[i] = must(syscall(NR_open_tree, AT_FDCWD, path, TREE_CLONE | O_CLOEXEC | RECURSIVE), path);
    }
    kernel_parts();
    private_places();
    must(umount2("/host", MNT_DETACH), "umount the host");
    must(chdir("/root"), "chdir");
    must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    must(umount2(".", MNT_DETACH), "umount the old root");
    must(chdir("/"), "chdir");
}

/* -- the payload --------------------------------------------------------------------------------- */

static const int refused[] = {
    /* About what pytest_crate.kernel.seccomp names, and in the same form. */
    NR_clone3, SYS_setns, SYS_mount, SYS_umount2, SYS_pivot_root, 428, 467, 429, 430, 431, 432, 433, 442, 425, 426, 427,
    SYS_keyctl, SYS_add_key, SYS_request_key, SYS_bpf, SYS_perf_event_open, SYS_userfaultfd, SYS_open_by_handle_at,
    SYS_kcmp, 438, SYS_move_pages, SYS_migrate_pages, SYS_fanotify_init, SYS_kexec_load, SYS_init_module,
    SYS_finit_module, SYS_delete_module, SYS_reboot, SYS_settimeofday, SYS_clock_settime, SYS_syslog, SYS_swapon,
    SYS_swapoff, SYS_quotactl, 443, SYS_acct, SYS_vhangup, SYS_personality, SYS_unshare};

#if defined __x86_64__
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined __aarch64__
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#else
#error "which architecture?"
#endif

static void filter_calls(void)
{
    enum { COUNT = sizeof refused / sizeof *refused };
    struct sock_filter program[2 * COUNT + 8];
    unsigned short length = 0;
    program[length++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    program[length++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0);
    program[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    program[length++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < COUNT; i++) {
        program[length++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, refused[i], 0, 1);
        program[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
    }
    program[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog whole = {.len = length, .filter = program};
    must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &whole), "seccomp");
}

static void confine(void)
{
    /* Docker's defaults less two: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap,
     * net_bind_service, net_raw, sys_chroot, setfcap */
    static const int kept[] = {0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 31};
    uint64_t mask = 0;
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        mask |= 1ULL << kept[i];
    must(setns(user_namespace, NEW_USER), "enter the user namespace");
    for (int number = 0; number <= last_capability; number++)
        if (!(mask >> number & 1))
            must(prctl(PR_CAPBSET_DROP, number, 0, 0, 0), "drop from the bounding set");
    must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "clear the ambient set");
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{.effective = (uint32_t)mask, .permitted = (uint32_t)mask}};
    must(syscall(SYS_capset, &header, data), "capset");
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
    filter_calls();
}

static void be_payload(const int tasks[], char *program)
{
    for (int i = 0; i < hierarchy_count; i++)
        must(write(tasks[i], "0", 1), "join a cgroup");
    must(unshare(NEW_CGROUP), "make a cgroup namespace");
    setsid();
    confine();
    must(syscall(NR_close_range, 3, ~0U, 0), "close_range");
    execvp(program, (char *[]){program, NULL});
    fail(program);
}

static void be_init(const int tasks[], char *program)
{
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int status, control;
    must(prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG");
    setsid();
    control = must(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");
    must(ioctl(control, SIOCSIFFLAGS, &lo), "bring lo up");
    close(control);
    write_text("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    build_root();
    must(sethostname("crate", 5), "sethostname");
    pid_t payload = fork_into(0);
    if (payload == 0)
        be_payload(tasks, program);
    must(waitpid(payload, &status, 0), "waitpid");
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
}

static void make_user_namespace(void)
{
    int ends[2];
    char path[64], byte;
    must(pipe(ends), "pipe");
    pid_t holder = fork_into(NEW_USER);
    if (holder == 0) {
        close(ends[1]);
        read(ends[0], &byte, 1);
        _exit(0);
    }
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "/proc/%d/%s", holder, i ? "gid_map" : "uid_map");
        write_text(path, "0 0 4294967295");
    }
    snprintf(path, sizeof path, "/proc/%d/ns/user", holder);
    user_namespace = must(open(path, O_RDONLY | O_CLOEXEC), path);
    close(ends[1]);
    close(ends[0]);
    waitpid(holder, NULL, 0);
}

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int crate(char *program)
{
    int tasks[MAX_HIERARCHIES], status;
    make_leaf(tasks);
    pid_t init = fork_into(NEW_PID | NEW_NS | NEW_NET | NEW_UTS | NEW_IPC);
    if (init == 0)
        be_init(tasks, program);
    for (int i = 0; i < hierarchy_count; i++)
        close(tasks[i]);
    must(waitpid(init, &status, 0), "waitpid");
    account();
    for (int i = 0; i < hierarchy_count; i++)
        remove_directory(in_leaf(i, ""));
    return status;
}

int main(int argc, char **argv)
{
    char text[64];
    int status = 0, count = argc > 2 ? atoi(argv[1]) : 0;
    if (count < 1 || argc - 3 > MAX_PATHS) {
        fprintf(stderr, "usage: limit COUNT PROGRAM [PATH...]\n");
        return 2;
    }
    self = getpid();
    for (int i = 3; i < argc; i++)
        paths[path_count++] = argv[i];
    home = getenv("HOME") ? getenv("HOME") : "/root";
    read_text("/proc/sys/kernel/cap_last_cap", text, sizeof text);
    last_capability = atoi(text);
    of_memory = find_hierarchy("memory");
    of_cpu = find_hierarchy("cpu");
    of_cpuacct = find_hierarchy("cpuacct");
    of_pids = find_hierarchy("pids");
    make_user_namespace();
    for (int i = 0; i < count && !status; i++) {
        int64_t started = now();
        status = crate(argv[2]);
        printf("%lld\n", (long long)(now() - started));
    }
    for (int i = 0; i < hierarchy_count; i++)
        remove_directory(hierarchies[i]);
    return status ? 1 : 0;
}
