// The first process of a pod's virtual machine: it boots the guest, runs the pod's containers, and answers the driver.
//
// Everything the driver wants is one TCP connection: a request, an answer, and for exec and attach frames until the
// process's end. It listens on a network of its own, which leads to the driver alone; the containers are in
// another network namespace and can't reach it. What the words and frames mean is in protocol.py.
//
// A thread for each connection, one more for each container that copies its output, and the first thread reaps. All of
// the state is below `lock`. Children do nothing but system calls between fork and exec that the driver has planned.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/netlink.h>
#include <linux/openat2.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <net/route.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { PORT = 1024, PIECE = 1 << 16, LINE = 8192, MAX_REQUEST = 1 << 20, SESSION_PIPE = 1 << 20, PATIENCE_MS = 2000 };
#define CGROUPS "/sys/fs/cgroup"
#define SHARED "/shared"
#define LOGS "/logs"
#define NEW_ROOT "/newroot"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int pod_network = -1;

// ---- small things

static void say(const char *format, ...) {
    char text[512];
    va_list given;
    va_start(given, format);
    vsnprintf(text, sizeof text, format, given);
    va_end(given);
    dprintf(2, "crinoid-microvm: %s\n", text);
}

static long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static bool write_all(int fd, const void *data, size_t size) {
    while (size) {
        ssize_t done = write(fd, data, size);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return false;
        data = (const char *)data + done;
        size -= done;
    }
    return true;
}

static bool read_all(int fd, void *data, size_t size) {
    while (size) {
        ssize_t done = read(fd, data, size);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return false;
        data = (char *)data + done;
        size -= done;
    }
    return true;
}

static bool write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return false;
    bool good = write(fd, text, strlen(text)) >= 0;
    int kept = errno;
    close(fd);
    errno = kept;
    return good;
}

static void set_blocking(int fd, bool blocks) {
    int flags = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, blocks ? flags & ~O_NONBLOCK : flags | O_NONBLOCK);
}

static void shut(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

// ---- requests: "key=value" and a zero byte each; a key may come more than once

struct request { char *text; size_t size; };

static const char *next_of(const struct request *request, const char *key, const char *after) {
    size_t length = strlen(key);
    const char *at = after ? after + strlen(after) + 1 : request->text;
    for (; at < request->text + request->size; at += strlen(at) + 1)
        if (!strncmp(at, key, length) && at[length] == '=') return at + length + 1;
    return NULL;
}

static const char *word(const struct request *request, const char *key) {
    const char *found = next_of(request, key, NULL);
    return found ? found : "";
}

static long number(const struct request *request, const char *key) { return strtol(word(request, key), NULL, 10); }

static char **list_of(const struct request *request, const char *key) {
    size_t count = 0;
    for (const char *at = NULL; (at = next_of(request, key, at));) count++;
    char **list = calloc(count + 1, sizeof *list);
    count = 0;
    for (const char *at = NULL; (at = next_of(request, key, at));) list[count++] = (char *)at;
    return list;
}

// ---- frames: a letter, four bytes of length, the rest

static bool send_frame(int conn, char kind, const void *data, size_t size) {
    unsigned char head[5] = {kind, size >> 24, size >> 16, size >> 8, size};
    struct iovec parts[2] = {{head, 5}, {(void *)data, size}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    ssize_t done = sendmsg(conn, &message, MSG_NOSIGNAL);
    if (done < 0) return false;
    if ((size_t)done < 5) return write_all(conn, head + done, 5 - done) && write_all(conn, data, size);
    return write_all(conn, (const char *)data + (done - 5), size - (done - 5));
}

static bool answer(int conn, const char *text) { return send_frame(conn, 'A', text, strlen(text)); }

static bool refuse(int conn, const char *kind, const char *format, ...) {
    char text[1024];
    int length = snprintf(text, sizeof text, "%s", kind) + 1;
    va_list given;
    va_start(given, format);
    vsnprintf(text + length, sizeof text - length, format, given);
    va_end(given);
    return send_frame(conn, 'E', text, length + strlen(text + length));
}

static bool receive_frame(int conn, char *kind, char *data, size_t room, size_t *size) {
    unsigned char head[5];
    if (!read_all(conn, head, 5)) return false;
    *kind = head[0];
    *size = (size_t)head[1] << 24 | head[2] << 16 | head[3] << 8 | head[4];
    return *size <= room && read_all(conn, data, *size);
}

// ---- children: whoever starts one waits for `ended`; the first thread reaps

struct child { pid_t pid; int ended, code; bool is_done; long long at_ns; struct child *next; };
static struct child *children;

static struct child *adopt(pid_t pid) {  // with the lock held since before the fork
    struct child *child = calloc(1, sizeof *child);
    child->pid = pid;
    child->ended = eventfd(0, EFD_CLOEXEC);
    child->next = children;
    return children = child;
}

static void forget(struct child *child) {  // with the lock held
    for (struct child **at = &children; *at; at = &(*at)->next)
        if (*at == child) {
            *at = child->next;
            break;
        }
    close(child->ended);
    free(child);
}

static void reap_for_ever(void) {
    sigset_t deaths;
    sigemptyset(&deaths);
    sigaddset(&deaths, SIGCHLD);
    for (;;) {
        int status;
        pid_t pid = waitpid(-1, &status, 0);
        if (pid < 0) {
            sigwaitinfo(&deaths, NULL);
            continue;
        }
        pthread_mutex_lock(&lock);
        for (struct child *child = children; child; child = child->next)
            if (child->pid == pid && !child->is_done) {
                child->is_done = true;
                child->code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
                child->at_ns = now_ns();
                uint64_t one = 1;
                (void)!write(child->ended, &one, sizeof one);
            }
        pthread_mutex_unlock(&lock);
    }
}

// ---- containers

struct session { int ends[2]; bool lost; struct session *next; };
struct text { char bytes[LINE]; size_t size; };
enum state { CREATED, RUNNING, STOPPED };
static const char *const STATES[] = {"created", "running", "stopped"};

struct container {
    char id[160];
    struct container *next;
    int references;
    bool is_gone;
    enum state state;
    struct child *child;
    pid_t pid;
    int code;
    bool out_of_memory;
    long long finished_ns;
    int talk, in, out, err;  // talk: to the child, until it has become the program
    int input_over;          // readable once the input has been closed for good
    bool terminal, stdin_once;
    pthread_mutex_t output;  // guards what follows
    int log;
    bool is_torn;
    struct text begun[2];
    struct session *sessions;
};
static struct container *containers;

static struct container *find(const char *id) {
    pthread_mutex_lock(&lock);
    struct container *at = containers;
    while (at && strcmp(at->id, id)) at = at->next;
    if (at) at->references++;
    pthread_mutex_unlock(&lock);
    return at;
}

static void release(struct container *container) {
    if (!container) return;
    pthread_mutex_lock(&lock);
    bool is_last = !--container->references && container->is_gone;
    pthread_mutex_unlock(&lock);
    if (!is_last) return;
    shut(&container->in);
    shut(&container->talk);
    shut(&container->log);
    shut(&container->input_over);
    free(container);
}

static void cgroup_of(const char *id, const char *name, char *path, size_t room) {
    snprintf(path, room, "%s/pod%s%s%s%s", CGROUPS, *id ? "/" : "", id, *name ? "/" : "", name);
}

static bool read_cgroup(const char *id, const char *name, char *text, size_t room) {
    char path[512];
    cgroup_of(id, name, path, sizeof path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : read(fd, text, room - 1);
    if (fd >= 0) close(fd);
    text[size < 0 ? 0 : size] = 0;
    return size >= 0;
}

static void each_cgroup(const char *path, void (*act)(const char *path, int value), int value) {
    DIR *directory = opendir(path);
    for (struct dirent *entry; directory && (entry = readdir(directory));)
        if (entry->d_type == DT_DIR && entry->d_name[0] != '.') {
            char below[1024];
            snprintf(below, sizeof below, "%s/%s", path, entry->d_name);
            each_cgroup(below, act, value);
        }
    if (directory) closedir(directory);
    act(path, value);
}

static void signal_cgroup(const char *path, int number) {
    char file[1100];
    snprintf(file, sizeof file, "%s/cgroup.procs", path);
    FILE *processes = fopen(file, "re");
    for (int pid; processes && fscanf(processes, "%d", &pid) == 1;) kill(pid, number);
    if (processes) fclose(processes);
}

static void remove_cgroup(const char *path, int unused) {
    (void)unused;
    for (int tries = 0; rmdir(path) && errno == EBUSY && tries < 500; tries++) usleep(10000);  // zombies have to go
}

static void kill_cgroup(const char *path) {
    char file[1100];
    snprintf(file, sizeof file, "%s/cgroup.kill", path);
    write_file(file, "1");
}

// ---- output: lines of the CRI's log, and copies for whoever is attached

enum { HEAD = 64 };

static size_t format_head(char *to, int stream) {  // of a line, but for its tag: all that came at once have the same
    struct timespec now;
    struct tm parts;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &parts);
    size_t length = strftime(to, HEAD / 2, "%Y-%m-%dT%H:%M:%S", &parts);
    return length + snprintf(to + length, HEAD - length, ".%09ldZ %s ", now.tv_nsec, stream ? "stderr" : "stdout");
}

static char *put_line(char *to, const char *head, size_t size, char tag, const struct text *line) {
    to = mempcpy(to, head, size);
    *to++ = tag;
    *to++ = ' ';
    to = mempcpy(to, line->bytes, line->size);
    *to++ = '\n';
    return to;
}

static void append_log(struct container *container, const char *lines, size_t size) {
    if (container->log < 0 || !size) return;
    if (container->is_torn && write(container->log, "\n", 1) != 1) return;
    container->is_torn = false;
    while (size) {
        ssize_t done = write(container->log, lines, size);
        if (done <= 0) {  // a full disk: the container is not to stand still for it
            say("log of %.20s: %s", container->id, strerror(errno));
            return;
        }
        lines += done;
        size -= done;
        container->is_torn = size && lines[-1] != '\n';
    }
}

static void log_piece(struct container *container, int stream, const char *data, size_t size) {
    if (container->log < 0) return;
    char head[HEAD];
    size_t length_of_head = format_head(head, stream);
    struct text *begun = &container->begun[stream];
    char *lines = malloc(4 * PIECE), *to = lines;  // a line takes at most LINE and its head
    char *const full = lines + 3 * PIECE;
    while (size) {
        const char *end = memchr(data, '\n', size);
        size_t length = end ? (size_t)(end - data) : size, room = LINE - begun->size;
        size_t taken = length < room ? length : room;
        memcpy(begun->bytes + begun->size, data, taken);
        begun->size += taken;
        data += taken;
        size -= taken;
        bool is_whole = end && taken == length;
        if (is_whole) data++, size--;
        if (is_whole || begun->size == LINE) {
            to = put_line(to, head, length_of_head, is_whole ? 'F' : 'P', begun);
            begun->size = 0;
        }
        if (to > full) append_log(container, lines, to - lines), to = lines;
    }
    append_log(container, lines, to - lines);
    free(lines);
}

static void copy_to_sessions(struct container *container, int stream, const char *data, size_t size) {
    for (struct session *session = container->sessions; session; session = session->next) {
        const char *at = data;
        for (size_t left = size; left && session->ends[stream] >= 0;) {
            ssize_t done = write(session->ends[stream], at, left);
            if (done > 0) {
                at += done;
                left -= done;
                continue;
            }
            struct pollfd room = {session->ends[stream], POLLOUT, 0};
            if (done < 0 && errno == EAGAIN && poll(&room, 1, PATIENCE_MS) == 1 && !(room.revents & POLLERR)) continue;
            session->lost = session->lost || errno == EAGAIN;  // it is ended rather than to hold up the container
            shut(&session->ends[0]);
            shut(&session->ends[1]);
        }
    }
}

static bool copy_output(struct container *container, int stream, int fd, char *buffer) {
    ssize_t size = read(fd, buffer, PIECE);
    if (size <= 0) return size < 0 && errno == EINTR;
    pthread_mutex_lock(&container->output);
    log_piece(container, stream, buffer, size);
    copy_to_sessions(container, stream, buffer, size);
    pthread_mutex_unlock(&container->output);
    return true;
}

static void *watch_container(void *given) {
    struct container *container = given;
    char *buffer = malloc(PIECE);
    struct pollfd polled[3] = {
        {container->out, POLLIN, 0}, {container->err, POLLIN, 0}, {container->child->ended, POLLIN, 0}};
    while (!(polled[2].revents & POLLIN)) {
        if (poll(polled, 3, -1) < 0) continue;
        for (int stream = 0; stream < 2; stream++)
            if (polled[stream].revents && !copy_output(container, stream, polled[stream].fd, buffer))
                polled[stream].fd = -1;
    }
    for (int stream = 0; stream < 2; stream++)  // what is in the pipes still, of whoever lives on nothing more
        if (polled[stream].fd >= 0) {
            set_blocking(polled[stream].fd, false);
            for (int pieces = 0; pieces < 64 && copy_output(container, stream, polled[stream].fd, buffer);) pieces++;
        }
    free(buffer);
    pthread_mutex_lock(&container->output);
    for (int stream = 0; stream < 2; stream++)
        if (container->begun[stream].size) {
            char line[LINE + 2 * HEAD], head[HEAD];
            struct text *begun = &container->begun[stream];
            append_log(container, line, put_line(line, head, format_head(head, stream), 'F', begun) - line);
            begun->size = 0;
        }
    for (struct session *session = container->sessions; session; session = session->next) {
        shut(&session->ends[0]);
        shut(&session->ends[1]);
    }
    pthread_mutex_unlock(&container->output);
    char events[512];
    const char *kills = read_cgroup(container->id, "memory.events", events, sizeof events)
                            ? strstr(events, "oom_kill ") : NULL;
    pthread_mutex_lock(&lock);
    shut(&container->out);
    shut(&container->err);
    container->code = container->child->code;
    container->finished_ns = container->child->at_ns;
    container->out_of_memory = kills && atol(kills + 9) > 0;
    forget(container->child);
    container->child = NULL;
    container->pid = 0;
    container->state = STOPPED;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    release(container);
    return NULL;
}

// ---- in the child: what becomes a container or an exec process

static int talking;  // to the agent

static void fail(const char *what) {
    char text[900];
    snprintf(text, sizeof text, "E%s: %s", what, strerror(errno));
    (void)!write(talking, text, strlen(text));
    _exit(127);
}

static int open_in(int root, const char *path, int flags) {
    struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT};
    return syscall(SYS_openat2, root, path, &how, sizeof how);
}

static int open_mount_point(int root, const char *path, bool is_directory) {
    char prefix[4096];
    int at = open_in(root, "/", O_PATH);
    for (const char *end = path; *end;) {
        const char *begin = end + strspn(end, "/");
        end = begin + strcspn(begin, "/");
        if (begin == end || end - path >= (long)sizeof prefix) break;
        memcpy(prefix, path, end - path);
        prefix[end - path] = 0;
        int found = open_in(root, prefix, O_PATH);
        if (found < 0 && errno == ENOENT) {
            const char *name = prefix + (begin - path);
            bool is_last = !end[strspn(end, "/")];
            if (is_directory || !is_last) {
                if (mkdirat(at, name, 0755) && errno != EEXIST) fail(path);
            } else {
                int file = openat(at, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0644);
                if (file < 0) fail(path);
                close(file);
            }
            found = open_in(root, prefix, O_PATH);
        }
        if (found < 0) fail(path);
        close(at);
        at = found;
    }
    return at;
}

static char *cut(char **text) {  // the next of fields that are parted by 0x1f
    char *field = *text, *end = strchr(field, 0x1f);
    if (end) *end = 0;
    *text = end ? end + 1 : field + strlen(field);
    return field;
}

static void make_mount(int root, char *text) {  // type, source, destination, flags, data
    char *type = cut(&text), *source = cut(&text), *destination = cut(&text);
    unsigned long flags = strtoul(cut(&text), NULL, 10);
    char target[64];
    struct stat about = {.st_mode = S_IFDIR};
    bool binds = !strcmp(type, "bind");
    if (binds && stat(source, &about)) fail(source);
    int fd = open_mount_point(root, destination, S_ISDIR(about.st_mode));
    snprintf(target, sizeof target, "/proc/self/fd/%d", fd);
    if (mount(source, target, binds ? NULL : type, binds ? MS_BIND | MS_REC : flags, *text ? text : NULL)) fail(destination);
    close(fd);
    if (binds && flags) {
        fd = open_in(root, destination, O_PATH);
        snprintf(target, sizeof target, "/proc/self/fd/%d", fd);
        if (mount(NULL, target, NULL, MS_REMOUNT | MS_BIND | flags, NULL)) fail(destination);
        close(fd);
    }
}

static void make_devices(int root) {
    static const struct { const char *name; int major, minor; } DEVICES[] = {
        {"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};
    static const char *const LINKS[][2] = {{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"},
        {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"}, {"ptmx", "pts/ptmx"}};
    int dev = open_mount_point(root, "/dev", true);
    for (size_t i = 0; i < sizeof DEVICES / sizeof *DEVICES; i++)
        if (!mknodat(dev, DEVICES[i].name, S_IFCHR | 0666, makedev(DEVICES[i].major, DEVICES[i].minor)))
            fchmodat(dev, DEVICES[i].name, 0666, 0);
    for (size_t i = 0; i < sizeof LINKS / sizeof *LINKS; i++) (void)!symlinkat(LINKS[i][1], dev, LINKS[i][0]);
    close(dev);
}

static void hide(const char *path, bool is_masked) {
    struct stat about;
    if (stat(path, &about)) return;
    if (!is_masked) {
        if (mount(path, path, NULL, MS_BIND | MS_REC, NULL) ||
            mount(NULL, path, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL)) fail(path);
    } else if (S_ISDIR(about.st_mode) ? mount("tmpfs", path, "tmpfs", MS_RDONLY, "size=0k")
                                      : mount("/dev/null", path, NULL, MS_BIND, NULL)) fail(path);
}

static void enter_root(const struct request *request) {
    char source[256];
    if (unshare(CLONE_NEWNS | (number(request, "cgroupns") ? CLONE_NEWCGROUP : 0))) fail("unshare");
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) fail("/");
    snprintf(source, sizeof source, "%s/%s/rootfs", SHARED, word(request, "id"));
    if (mount(source, NEW_ROOT, NULL, MS_BIND | MS_REC, NULL)) fail("root file system");
    int root = open(NEW_ROOT, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0) fail("root file system");
    for (char **at = list_of(request, "mount"); *at; at++) make_mount(root, *at);
    make_devices(root);
    for (char **at = list_of(request, "sysctl"); *at; at++) {
        char path[512], *value = strchr(*at, '=');
        *value = 0;
        snprintf(path, sizeof path, "/proc/sys/%s", *at);
        if (!write_file(path, value + 1)) fail(path);
    }
    if (fchdir(root) || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/")) fail("pivot_root");
    for (char **at = list_of(request, "masked"); *at; at++) hide(*at, true);
    for (char **at = list_of(request, "readonly"); *at; at++) hide(*at, false);
    if (number(request, "readonly_root") && mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL)) fail("/");
}

static int open_terminal(void) {
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC), index, unlocked = 0;
    char path[64];
    if (master < 0 || ioctl(master, TIOCSPTLCK, &unlocked) || ioctl(master, TIOCGPTN, &index)) fail("/dev/ptmx");
    snprintf(path, sizeof path, "/dev/pts/%d", index);
    int slave = open(path, O_RDWR | O_NOCTTY);
    if (slave < 0) fail(path);
    for (int fd = 0; fd < 3; fd++) dup2(slave, fd);
    if (slave > 2) close(slave);
    if (ioctl(0, TIOCSCTTY, 0)) fail(path);
    return master;
}

static void become_user(const struct request *request) {
    static const char *const SETS[] = {"effective", "permitted", "inheritable"};
    uint64_t sets[3], bounding = strtoull(word(request, "bounding"), NULL, 16);
    uint64_t ambient = strtoull(word(request, "ambient"), NULL, 16);
    for (int i = 0; i < 3; i++) sets[i] = strtoull(word(request, SETS[i]), NULL, 16);
    for (char **at = list_of(request, "rlimit"); *at; at++) {
        unsigned long long soft, hard;
        int kind;
        if (sscanf(*at, "%d %llu %llu", &kind, &soft, &hard) == 3 &&
            setrlimit(kind, &(struct rlimit){soft, hard})) fail("rlimit");
    }
    for (int cap = 0; cap < 64 && prctl(PR_CAPBSET_READ, cap) >= 0; cap++)
        if (!(bounding >> cap & 1)) prctl(PR_CAPBSET_DROP, cap);
    gid_t groups[256];
    size_t count = 0;
    for (char **at = list_of(request, "group"); *at && count < 256; at++) groups[count++] = strtoul(*at, NULL, 10);
    uid_t uid = number(request, "uid");
    gid_t gid = number(request, "gid");
    prctl(PR_SET_KEEPCAPS, 1);
    if (setgroups(count, groups) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid)) fail("user");
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    for (int i = 0; i < 2; i++)
        data[i] = (struct __user_cap_data_struct){sets[0] >> 32 * i, sets[1] >> 32 * i, sets[2] >> 32 * i};
    if (syscall(SYS_capset, &head, data)) fail("capabilities");
    for (int cap = 0; cap < 64; cap++)
        if (ambient >> cap & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0)) fail("ambient capabilities");
    if (number(request, "no_new_privileges")) prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

static const char *find_program(char **args, char **env) {
    static char path[4096];
    if (strchr(args[0], '/')) {
        struct stat about;
        if (stat(args[0], &about)) fail(args[0]);
        return args[0];
    }
    const char *places = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    for (char **at = env; *at; at++)
        if (!strncmp(*at, "PATH=", 5)) places = *at + 5;
    while (*places) {
        int length = strcspn(places, ":");
        snprintf(path, sizeof path, "%.*s/%s", length, places, args[0]);
        if (!access(path, X_OK)) return path;
        places += length + (places[length] == ':');
    }
    errno = ENOENT;
    char what[300];
    snprintf(what, sizeof what, "%.200s: executable file not found in $PATH", args[0]);
    fail(what);
    return NULL;
}

static void run_program(const struct request *request, bool waits) {
    char **args = list_of(request, "arg"), **env = list_of(request, "env");
    int master = -1;
    setsid();
    if (*word(request, "oom_score_adj") && !number(request, "is_exec"))
        write_file("/proc/self/oom_score_adj", word(request, "oom_score_adj"));
    if (!number(request, "is_exec")) enter_root(request);
    if (number(request, "terminal")) master = open_terminal();
    const char *cwd = *word(request, "cwd") ? word(request, "cwd") : "/";
    if (chdir(cwd) && errno == ENOENT && !number(request, "is_exec")) mkdir(cwd, 0755);
    umask(*word(request, "umask") ? number(request, "umask") : 022);
    become_user(request);
    if (chdir(cwd)) fail(cwd);
    const char *program = find_program(args, env);
    char ready = 'R', control[CMSG_SPACE(sizeof master)] = {0};
    struct iovec part = {&ready, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (master >= 0) {
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        struct cmsghdr *carried = CMSG_FIRSTHDR(&message);
        *carried = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof master)};
        memcpy(CMSG_DATA(carried), &master, sizeof master);
    }
    if (sendmsg(talking, &message, MSG_NOSIGNAL) != 1) _exit(127);
    if (waits && read(talking, &ready, 1) != 1) _exit(127);
    for (int signal_number = 1; signal_number < 65; signal_number++) signal(signal_number, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execve(program, args, env);
    fail(args[0]);
}

struct started { struct child *child; int talk, in, out, err; char error[900]; };

static void close_started(struct started *made) {
    shut(&made->talk);
    shut(&made->in);
    shut(&made->out);
    shut(&made->err);
}

// Fork twice, as only a child is in the PID namespace that its parent has chosen. `target`: whose namespaces to enter.
static bool start_process(const struct request *request, const char *cgroup, pid_t target, struct started *made) {
    int talk[2], in[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1}, born[2], places[2] = {-1, -1};
    bool terminal = number(request, "terminal"), is_exec = target > 0;
    *made = (struct started){NULL, -1, -1, -1, -1, ""};
    for (int i = 0; i < 2 && is_exec; i++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/%d/ns/%s", target, i ? "mnt" : "pid");
        places[i] = open(path, O_RDONLY | O_CLOEXEC);
    }
    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, talk);
    (void)!pipe2(born, O_CLOEXEC);
    if (!terminal) {
        if (number(request, "stdin")) (void)!pipe2(in, O_CLOEXEC);
        if (number(request, "stdout")) (void)!pipe2(out, O_CLOEXEC);
        if (number(request, "stderr")) (void)!pipe2(err, O_CLOEXEC);
    }
    pthread_mutex_lock(&lock);
    pid_t between = fork();
    if (!between) {
        talking = talk[1];
        char file[600];
        snprintf(file, sizeof file, "%s/cgroup.procs", cgroup);
        if (!write_file(file, "0")) fail("cgroup");
        if (setns(pod_network, CLONE_NEWNET)) fail("network");
        if (is_exec ? setns(places[0], CLONE_NEWPID) || setns(places[1], CLONE_NEWNS)
                    : number(request, "pidns") && unshare(CLONE_NEWPID)) fail("namespaces");
        pid_t pid = fork();
        if (pid) {
            (void)!write(born[1], &pid, sizeof pid);
            _exit(0);
        }
        int null = open("/dev/null", O_RDWR | O_CLOEXEC);
        dup2(in[0] >= 0 ? in[0] : null, 0);
        dup2(out[1] >= 0 ? out[1] : null, 1);
        dup2(err[1] >= 0 ? err[1] : null, 2);
        run_program(request, !is_exec);
    }
    close(born[1]);
    pid_t pid = 0;
    if (between > 0 && read(born[0], &pid, sizeof pid) == sizeof pid && pid > 0) made->child = adopt(pid);
    pthread_mutex_unlock(&lock);
    int theirs[] = {born[0], talk[1], in[0], out[1], err[1], places[0], places[1]};
    for (size_t i = 0; i < sizeof theirs / sizeof *theirs; i++) shut(&theirs[i]);
    made->talk = talk[0];
    made->in = in[1];
    made->out = out[0];
    made->err = err[0];
    char control[CMSG_SPACE(sizeof(int))];
    struct iovec part = {made->error, sizeof made->error - 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t size = recvmsg(talk[0], &message, MSG_CMSG_CLOEXEC);
    struct cmsghdr *carried = size > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (carried) {
        memcpy(&made->out, CMSG_DATA(carried), sizeof made->out);
        made->in = dup(made->out);
        fcntl(made->in, F_SETFD, FD_CLOEXEC);
    }
    if (size > 0 && made->error[0] == 'R') return true;
    if (size <= 0) snprintf(made->error, sizeof made->error, "Eits process could not be made");
    made->error[size > 0 ? size : (ssize_t)strlen(made->error)] = 0;
    close_started(made);
    return false;
}

static void wait_and_forget(struct child *child) {
    if (!child) return;
    struct pollfd ended = {child->ended, POLLIN, 0};
    while (poll(&ended, 1, -1) != 1) continue;
    pthread_mutex_lock(&lock);
    forget(child);
    pthread_mutex_unlock(&lock);
}

// ---- what the driver asks for

static bool set_limits(int conn, const struct request *request, const char *id) {
    for (char **at = list_of(request, "limit"); *at; at++) {
        char path[512], *value = strchr(*at, '=');
        *value++ = 0;
        cgroup_of(id, *at, path, sizeof path);
        bool may_lack = !strcmp(*at, "memory.swap.max");  // a kernel without swap
        if (write_file(path, value) || (may_lack && errno == ENOENT)) continue;
        refuse(conn, "refused", "%s can't be %s: %s", *at, value, strerror(errno));
        return false;
    }
    return true;
}

static void create(int conn, const struct request *request) {
    const char *id = word(request, "id"), *log = word(request, "log");
    char cgroup[512], path[512];
    struct container *former = find(id);
    if (former) {
        refuse(conn, "exists", "it is there already");
        release(former);
        return;
    }
    struct container *made = calloc(1, sizeof *made);
    snprintf(made->id, sizeof made->id, "%s", id);
    made->references = 2;  // the list's and the watcher's
    made->log = -1;
    made->terminal = number(request, "terminal");
    made->stdin_once = number(request, "stdin_once");
    made->input_over = eventfd(0, EFD_CLOEXEC);
    pthread_mutex_init(&made->output, NULL);
    snprintf(path, sizeof path, "%s/%s", LOGS, log);
    if (*log && (made->log = open(path, O_WRONLY | O_APPEND | O_CLOEXEC)) < 0) {
        refuse(conn, "refused", "its log can't be opened: %s", strerror(errno));
        shut(&made->input_over);
        free(made);
        return;
    }
    cgroup_of(id, "", cgroup, sizeof cgroup);
    mkdir(cgroup, 0755);
    struct started process = {0};
    bool has_limits = set_limits(conn, request, id);
    if (!has_limits || !start_process(request, cgroup, 0, &process)) {
        wait_and_forget(process.child);
        each_cgroup(cgroup, remove_cgroup, 0);
        if (has_limits) refuse(conn, "refused", "%s", process.error + 1);
        shut(&made->log);
        shut(&made->input_over);
        free(made);
        return;
    }
    made->child = process.child;
    made->pid = process.child->pid;
    made->talk = process.talk;
    made->in = process.in;
    made->out = process.out;
    made->err = process.err;
    pthread_mutex_lock(&lock);
    made->next = containers;
    containers = made;
    pthread_mutex_unlock(&lock);
    pthread_t thread;
    pthread_create(&thread, NULL, watch_container, made);
    pthread_detach(thread);
    answer(conn, "");
}

static void start(int conn, struct container *container) {
    pthread_mutex_lock(&lock);
    bool waits = container->state == CREATED;
    if (waits) container->state = RUNNING;
    pthread_mutex_unlock(&lock);
    if (!waits) {
        refuse(conn, "precondition", "it does not wait to be started");
        return;
    }
    char error[900];
    ssize_t size = write(container->talk, "s", 1) == 1 ? read(container->talk, error, sizeof error - 1) : -1;
    shut(&container->talk);
    if (size > 0) {
        error[size] = 0;
        refuse(conn, "refused", "%s", error + 1);
    } else if (size < 0 && errno != ECONNRESET) {
        refuse(conn, "precondition", "its process has ended");
    } else {
        answer(conn, "");
    }
}

static void wait_for(int conn, struct container *container) {
    pthread_mutex_lock(&lock);
    while (container->state != STOPPED && !container->is_gone) {
        // whoever waits may have gone: look now and then
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += 5;
        pthread_cond_timedwait(&changed, &lock, &until);
        char byte;
        if (recv(conn, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0) break;
    }
    char text[128];
    snprintf(text, sizeof text, "%d %lld %d", container->code, container->finished_ns, container->out_of_memory);
    bool has_ended = container->state == STOPPED;
    pthread_mutex_unlock(&lock);
    if (has_ended) answer(conn, text);
    else refuse(conn, "notfound", "it has been deleted");
}

static void send_signal(int conn, const struct request *request, struct container *container) {
    int signal_number = number(request, "signal");
    char cgroup[512];
    cgroup_of(container->id, "", cgroup, sizeof cgroup);
    if (number(request, "everyone")) {
        if (signal_number == SIGKILL) kill_cgroup(cgroup);
        else each_cgroup(cgroup, signal_cgroup, signal_number);
    } else {
        pthread_mutex_lock(&lock);
        if (container->pid) kill(container->pid, signal_number);
        pthread_mutex_unlock(&lock);
    }
    answer(conn, "");
}

static void delete(int conn, struct container *container) {
    char cgroup[512];
    cgroup_of(container->id, "", cgroup, sizeof cgroup);
    kill_cgroup(cgroup);
    pthread_mutex_lock(&lock);
    while (container->state != STOPPED) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    each_cgroup(cgroup, remove_cgroup, 0);
    pthread_mutex_lock(&lock);
    for (struct container **at = &containers; *at; at = &(*at)->next)
        if (*at == container) {
            *at = container->next;
            container->references--;  // the list's
            break;
        }
    container->is_gone = true;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    write_file("/proc/sys/vm/drop_caches", "2");  // what 9p has open of its files, so that the host can unmount them
    answer(conn, "");
}

static void tell_usage(int conn, const char *id) {
    static const char *const FILES[] = {"cpu.stat", "memory.current", "memory.max", "memory.stat", "memory.swap.current",
                                        "pids.current"};
    char text[12288] = "", part[4096];
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++)
        if (read_cgroup(id, FILES[i], part, sizeof part))
            snprintf(text + strlen(text), sizeof text - strlen(text), "[%s]\n%s", FILES[i], part);
    answer(conn, text);
}

static void reopen_log(int conn, const struct request *request, struct container *container) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", LOGS, word(request, "log"));
    int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (fd < 0) {
        refuse(conn, "unavailable", "its log can't be opened anew: %s", strerror(errno));
        return;
    }
    pthread_mutex_lock(&container->output);
    shut(&container->log);
    container->log = fd;
    container->is_torn = false;
    pthread_mutex_unlock(&container->output);
    answer(conn, "");
}

// ---- streams

struct relay {
    int conn, in, out, err;
    bool ends_input, hangs_up_kills;
    struct child *child;
    const char *cgroup;
    struct container *attached_to;
};

// Close a container's input for good: also that of all others who are attached.
static void end_input(struct container *container) {
    uint64_t one = 1;
    pthread_mutex_lock(&lock);
    shut(&container->in);
    pthread_mutex_unlock(&lock);
    (void)!write(container->input_over, &one, sizeof one);
}

// Copy between a connection and a process until that has ended; without a child, until its output has.
static void relay(struct relay *to) {
    char *buffer = malloc(PIECE), *pending = malloc(2 * PIECE);
    size_t waiting = 0;
    bool is_last = false, has_ended = false;
    if (to->in >= 0) set_blocking(to->in, false);
    while (!has_ended && (to->child || to->out >= 0 || to->err >= 0)) {
        struct pollfd polled[6] = {{to->conn, POLLIN, 0}, {to->out, POLLIN, 0}, {to->err, POLLIN, 0},
            {waiting ? to->in : -1, POLLOUT, 0}, {to->child ? to->child->ended : -1, POLLIN, 0},
            {to->attached_to && to->in >= 0 ? to->attached_to->input_over : -1, POLLIN, 0}};
        if (poll(polled, 6, -1) < 0) continue;
        if (polled[5].revents) shut(&to->in), waiting = 0;
        if (polled[0].revents) {
            char kind = 0;
            size_t size = 0;
            if (!receive_frame(to->conn, &kind, buffer, PIECE, &size)) {  // whoever asked has gone
                if (to->hangs_up_kills) kill_cgroup(to->cgroup);
                shutdown(to->conn, SHUT_RDWR);
                polled[0].fd = to->conn = -1;
                kind = 'c';
            }
            if (kind == 'i' && to->in >= 0 && waiting + size <= 2 * PIECE)
                memcpy(pending + waiting, buffer, size), waiting += size;
            else if (kind == 'i')
                send_frame(to->conn, 'b', "", 0);
            else if (kind == 'e') is_last = true;
            else if (kind == 'w' && size == 8 && to->out >= 0) {
                struct winsize window = {0};
                buffer[8] = 0;
                if (sscanf(buffer, "%4hu%4hu", &window.ws_col, &window.ws_row) == 2) ioctl(to->out, TIOCSWINSZ, &window);
            }
            else if (kind == 'k') kill_cgroup(to->cgroup);
            else if (kind == 'c') {
                shut(&to->in), shut(&to->out), shut(&to->err);
                waiting = 0;
            }
        }
        if (waiting && to->in >= 0) {
            ssize_t done = write(to->in, pending, waiting);
            unsigned char count[4] = {done >> 24, done >> 16, done >> 8, done};
            if (done > 0) {
                memmove(pending, pending + done, waiting -= done);
                if (to->conn >= 0) send_frame(to->conn, 'a', count, 4);
            } else if (errno != EAGAIN) {
                shut(&to->in);
                waiting = 0;
                if (to->conn >= 0) send_frame(to->conn, 'b', "", 0);
            }
        }
        if (is_last && !waiting && to->ends_input && to->in >= 0) {
            shut(&to->in);
            if (to->attached_to) end_input(to->attached_to);
        }
        has_ended = polled[4].revents;
        for (int stream = 1; stream < 3; stream++) {
            int *fd = stream == 1 ? &to->out : &to->err;
            if (*fd < 0 || !(polled[stream].revents || has_ended)) continue;
            if (has_ended) set_blocking(*fd, false);
            ssize_t size;
            int pieces = 0;
            do {
                size = read(*fd, buffer, PIECE);
                if (size > 0 && to->conn >= 0) send_frame(to->conn, stream == 1 ? 'o' : 'r', buffer, size);
            } while (has_ended && size > 0 && ++pieces < 64);  // whoever else has it open is not waited for
            if (size <= 0 && errno != EINTR) shut(fd);
        }
    }
    free(buffer);
    free(pending);
}

static void execute(int conn, const struct request *request, struct container *container) {
    static unsigned long long count;
    char name[32], cgroup[512];
    pthread_mutex_lock(&lock);
    pid_t target = container->state == RUNNING ? container->pid : 0;
    snprintf(name, sizeof name, "exec-%llu", ++count);
    pthread_mutex_unlock(&lock);
    if (!target) {
        refuse(conn, "precondition", "it does not run");
        return;
    }
    cgroup_of(container->id, name, cgroup, sizeof cgroup);
    mkdir(cgroup, 0755);
    struct started made;
    if (!start_process(request, cgroup, target, &made)) {
        wait_and_forget(made.child);
        rmdir(cgroup);
        pthread_mutex_lock(&lock);
        bool runs = container->state == RUNNING;
        pthread_mutex_unlock(&lock);
        refuse(conn, runs ? "refused" : "precondition", "%s", made.error + 1);
        return;
    }
    char error[900];
    ssize_t size = read(made.talk, error, sizeof error - 1);  // nothing once it has become the program
    if (size > 0) {
        error[size] = 0;
        wait_and_forget(made.child);
        rmdir(cgroup);
        refuse(conn, "refused", "%s", error + 1);
        close_started(&made);
        return;
    }
    answer(conn, "");
    struct relay to = {conn, made.in, made.out, made.err, !number(request, "terminal"), number(request, "sync"),
                       made.child, cgroup, NULL};
    relay(&to);
    unsigned char code = made.child->code;
    if (to.conn >= 0) send_frame(to.conn, 'x', &code, 1);
    wait_and_forget(made.child);
    rmdir(cgroup);  // unless something lives on in it
    made.in = to.in;
    made.out = to.out;
    made.err = to.err;
    close_started(&made);
}

static void attach(int conn, const struct request *request, struct container *container) {
    struct session session = {{-1, -1}, false, NULL};
    int readers[2] = {-1, -1};
    for (int stream = 0; stream < 2; stream++)
        if (number(request, stream ? "stderr" : "stdout")) {
            int ends[2];
            if (pipe2(ends, O_CLOEXEC)) continue;
            fcntl(ends[1], F_SETPIPE_SZ, SESSION_PIPE);
            set_blocking(ends[1], false);
            readers[stream] = ends[0];
            session.ends[stream] = ends[1];
        }
    pthread_mutex_lock(&container->output);
    pthread_mutex_lock(&lock);
    bool is_up = container->state != STOPPED;
    int input = is_up && number(request, "stdin") && container->in >= 0 ? dup(container->in) : -1;
    pthread_mutex_unlock(&lock);
    if (is_up) {
        session.next = container->sessions;
        container->sessions = &session;
    }
    pthread_mutex_unlock(&container->output);
    if (is_up) {
        bool has_input = input >= 0;
        answer(conn, "");
        struct relay to = {conn, input, readers[0], readers[1], container->stdin_once, false, NULL, "", container};
        relay(&to);
        shut(&to.in);
        if (has_input && container->stdin_once) end_input(container);
        pthread_mutex_lock(&container->output);
        for (struct session **at = &container->sessions; *at; at = &(*at)->next)
            if (*at == &session) {
                *at = session.next;
                break;
            }
        pthread_mutex_unlock(&container->output);
        if (to.conn >= 0) send_frame(to.conn, session.lost ? 'l' : 'x', "", 0);
        readers[0] = to.out;
        readers[1] = to.err;
    } else {
        refuse(conn, "precondition", "it has ended");
    }
    for (int stream = 0; stream < 2; stream++) shut(&session.ends[stream]), shut(&readers[stream]);
}

static void copy_both_ways(int one, int other) {
    char *buffer = malloc(PIECE);
    int ends[2] = {one, other};
    bool is_open[2] = {true, true};
    while (is_open[0] || is_open[1]) {
        struct pollfd polled[2] = {{is_open[0] ? one : -1, POLLIN, 0}, {is_open[1] ? other : -1, POLLIN, 0}};
        if (poll(polled, 2, -1) < 0) continue;
        for (int i = 0; i < 2; i++) {
            if (!polled[i].revents) continue;
            ssize_t size = read(ends[i], buffer, PIECE);
            if (size > 0 && write_all(ends[1 - i], buffer, size)) continue;
            is_open[i] = false;
            if (size == 0) shutdown(ends[1 - i], SHUT_WR);
            else is_open[1 - i] = false;
        }
    }
    free(buffer);
}

static void forward(int conn, const struct request *request) {
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons(number(request, "port")),
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = four.sin_port, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    if (setns(pod_network, CLONE_NEWNET)) {  // this thread's only
        refuse(conn, "unavailable", "network: %s", strerror(errno));
        return;
    }
    int made = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(made, (struct sockaddr *)&four, sizeof four)) {
        int refused = errno;
        close(made);
        made = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(made, (struct sockaddr *)&six, sizeof six)) {
            refuse(conn, "unavailable", "127.0.0.1: %s; ::1: %s", strerror(refused), strerror(errno));
            shut(&made);
            return;
        }
    }
    answer(conn, "");
    copy_both_ways(conn, made);
    close(made);
}

// ---- the pod's network: the links are the driver's words, of what the host's side of the pod has

static unsigned char *mac_of(const char *name, unsigned char *mac) {
    struct ifreq asked = {0};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    snprintf(asked.ifr_name, sizeof asked.ifr_name, "%s", name);
    bool good = !ioctl(fd, SIOCGIFHWADDR, &asked);
    close(fd);
    return good ? memcpy(mac, asked.ifr_hwaddr.sa_data, 6) : NULL;
}

static bool move_link(const char *name, const char *new_name) {  // to the pod's network namespace
    struct { struct nlmsghdr head; struct ifinfomsg link; char more[64]; } message = {0};
    message.head = (struct nlmsghdr){NLMSG_LENGTH(sizeof message.link), RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, 1, 0};
    message.link.ifi_index = if_nametoindex(name);
    const struct { int kind; const void *data; size_t size; } MORE[] = {
        {IFLA_NET_NS_FD, &pod_network, sizeof pod_network}, {IFLA_IFNAME, new_name, strlen(new_name) + 1}};
    for (int i = 0; i < 2; i++) {
        struct rtattr *attribute = (void *)((char *)&message + NLMSG_ALIGN(message.head.nlmsg_len));
        attribute->rta_type = MORE[i].kind;
        attribute->rta_len = RTA_LENGTH(MORE[i].size);
        memcpy(RTA_DATA(attribute), MORE[i].data, MORE[i].size);
        message.head.nlmsg_len = NLMSG_ALIGN(message.head.nlmsg_len) + RTA_ALIGN(attribute->rta_len);
    }
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    struct { struct nlmsghdr head; struct nlmsgerr error; char rest[256]; } reply = {0};
    bool good = send(fd, &message, message.head.nlmsg_len, 0) > 0 && recv(fd, &reply, sizeof reply, 0) > 0;
    close(fd);
    errno = good ? -reply.error.error : errno;
    return good && !reply.error.error;
}

static bool set_link(int fd, const char *name, int mtu) {
    struct ifreq asked = {0};
    snprintf(asked.ifr_name, sizeof asked.ifr_name, "%s", name);
    asked.ifr_mtu = mtu;
    if (mtu && ioctl(fd, SIOCSIFMTU, &asked)) return false;
    if (ioctl(fd, SIOCGIFFLAGS, &asked)) return false;
    asked.ifr_flags |= IFF_UP;
    return !ioctl(fd, SIOCSIFFLAGS, &asked);
}

static bool add_address(int fd, int fd6, const char *name, char *text) {
    char *length = strchr(text, '/');
    *length++ = 0;
    if (strchr(text, ':')) {
        struct { struct in6_addr address; uint32_t length; int index; } six = {
            .length = atoi(length), .index = if_nametoindex(name)};
        inet_pton(AF_INET6, text, &six.address);
        return !ioctl(fd6, SIOCSIFADDR, &six);
    }
    struct ifreq asked = {0};
    struct sockaddr_in *address = (void *)&asked.ifr_addr;
    snprintf(asked.ifr_name, sizeof asked.ifr_name, "%s", name);
    address->sin_family = AF_INET;
    inet_pton(AF_INET, text, &address->sin_addr);
    if (ioctl(fd, SIOCSIFADDR, &asked)) return false;
    address->sin_addr.s_addr = atoi(length) ? htonl(~0u << (32 - atoi(length))) : 0;
    return !ioctl(fd, SIOCSIFNETMASK, &asked);
}

static bool add_route(int fd, int fd6, const char *name, char *text) {  // "destination/length gateway", either may be empty
    char *gateway = strchr(text, ' ');
    *gateway++ = 0;
    char *length = strchr(text, '/');
    *length++ = 0;
    if (strchr(text, ':')) {
        struct in6_rtmsg route = {.rtmsg_flags = RTF_UP | (*gateway ? RTF_GATEWAY : 0), .rtmsg_metric = 1024,
                                  .rtmsg_dst_len = atoi(length), .rtmsg_ifindex = if_nametoindex(name)};
        inet_pton(AF_INET6, text, &route.rtmsg_dst);
        if (*gateway) inet_pton(AF_INET6, gateway, &route.rtmsg_gateway);
        return !ioctl(fd6, SIOCADDRT, &route) || errno == EEXIST;
    }
    struct rtentry route = {.rt_flags = RTF_UP | (*gateway ? RTF_GATEWAY : 0), .rt_dev = (char *)name};
    struct sockaddr_in *parts[] = {(void *)&route.rt_dst, (void *)&route.rt_genmask, (void *)&route.rt_gateway};
    for (int i = 0; i < 3; i++) parts[i]->sin_family = AF_INET;
    inet_pton(AF_INET, text, &parts[0]->sin_addr);
    parts[1]->sin_addr.s_addr = atoi(length) ? htonl(~0u << (32 - atoi(length))) : 0;
    if (*gateway) inet_pton(AF_INET, gateway, &parts[2]->sin_addr);
    return !ioctl(fd, SIOCADDRT, &route) || errno == EEXIST;
}

static void set_up_pod(int conn, const struct request *request) {
    const char *name = word(request, "interface"), *mac = word(request, "mac"), *hostname = word(request, "hostname");
    if (*hostname) sethostname(hostname, strlen(hostname));
    struct if_nameindex *links = if_nameindex();
    unsigned char its[6];
    char shown[20];
    bool is_found = !*mac;
    for (struct if_nameindex *link = links; *mac && link->if_index; link++) {
        if (!mac_of(link->if_name, its)) continue;
        snprintf(shown, sizeof shown, "%02x:%02x:%02x:%02x:%02x:%02x", its[0], its[1], its[2], its[3], its[4], its[5]);
        if (strcmp(shown, mac)) continue;
        is_found = move_link(link->if_name, name);
        break;
    }
    if_freenameindex(links);
    if (!is_found) {
        refuse(conn, "unavailable", "the interface with MAC address %s: %s", mac, strerror(errno));
        return;
    }
    setns(pod_network, CLONE_NEWNET);  // this thread's only
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), fd6 = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    set_link(fd, "lo", 0);
    const char *failed = NULL;
    for (char **at = list_of(request, "sysctl"); *at && !failed; at++) {
        char path[512], *value = strchr(*at, '=');
        *value++ = 0;
        snprintf(path, sizeof path, "/proc/sys/%s", *at);
        if (!write_file(path, value)) failed = *at;
    }
    if (*mac && !failed && !set_link(fd, name, number(request, "mtu"))) failed = name;
    for (char **at = list_of(request, "address"); *at && !failed; at++)
        if (!add_address(fd, fd6, name, *at)) failed = *at;
    for (char **at = list_of(request, "route"); *at && !failed; at++)
        if (!add_route(fd, fd6, name, *at)) failed = *at;
    if (failed) refuse(conn, "unavailable", "%s: %s", failed, strerror(errno));
    else answer(conn, "");
    close(fd);
    close(fd6);
}

// ---- serving

static void set_clock(const struct request *request) {
    long long told = strtoll(word(request, "now"), NULL, 10), apart = told - now_ns();
    if (told && (apart > 100000000LL || apart < -100000000LL))
        clock_settime(CLOCK_REALTIME, &(struct timespec){told / 1000000000, told % 1000000000});
}

static void serve(int conn, const struct request *request) {
    const char *op = word(request, "op");
    struct container *container = *word(request, "id") ? find(word(request, "id")) : NULL;
    set_clock(request);
    if (!strcmp(op, "hello")) answer(conn, "1");
    else if (!strcmp(op, "pod")) set_up_pod(conn, request);
    else if (!strcmp(op, "create")) create(conn, request);
    else if (!strcmp(op, "forward")) forward(conn, request);
    else if (!strcmp(op, "usage") && !*word(request, "id")) tell_usage(conn, "");
    else if (!strcmp(op, "limit") && !*word(request, "id")) (void)(set_limits(conn, request, "") && answer(conn, ""));
    else if (!strcmp(op, "state")) answer(conn, container ? STATES[container->state] : "absent");
    else if (!container) refuse(conn, "notfound", "there is no such container in the guest");
    else if (!strcmp(op, "start")) start(conn, container);
    else if (!strcmp(op, "wait")) wait_for(conn, container);
    else if (!strcmp(op, "kill")) send_signal(conn, request, container);
    else if (!strcmp(op, "delete")) delete(conn, container);
    else if (!strcmp(op, "limit")) (void)(set_limits(conn, request, container->id) && answer(conn, ""));
    else if (!strcmp(op, "usage") && container->state == STOPPED) refuse(conn, "notfound", "it has ended");
    else if (!strcmp(op, "usage")) tell_usage(conn, container->id);
    else if (!strcmp(op, "reopen")) reopen_log(conn, request, container);
    else if (!strcmp(op, "exec")) execute(conn, request, container);
    else if (!strcmp(op, "attach")) attach(conn, request, container);
    else refuse(conn, "internal", "the agent knows no %s", op);
    release(container);
}

static void *serve_connection(void *given) {
    int conn = (intptr_t)given;
    struct request request = {malloc(MAX_REQUEST + 2), 0};
    char kind;
    if (receive_frame(conn, &kind, request.text, MAX_REQUEST, &request.size) && kind == 'Q') {
        request.text[request.size] = request.text[request.size + 1] = 0;
        serve(conn, &request);
    }
    free(request.text);
    close(conn);
    return NULL;
}

static void *make_pod_network(void *unused) {
    (void)unused;
    if (!unshare(CLONE_NEWNET)) pod_network = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    return NULL;
}

static void must(bool good, const char *what) {
    if (good) return;
    say("%s: %s", what, strerror(errno));
    reboot(RB_AUTOBOOT);
}

static void load_modules(void) {
    for (int index = 0;; index++) {
        char path[64];
        snprintf(path, sizeof path, "/modules/%02d", index);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0) return;
        must(!syscall(SYS_finit_module, fd, "", 0) || errno == EEXIST, path);
        close(fd);
        unlink(path);  // gives its memory back
    }
}

static void boot(void) {
    static const struct { const char *type, *source, *target; unsigned long flags; const char *data; } MOUNTS[] = {
        {"proc", "proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
        {"sysfs", "sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
        {"devtmpfs", "dev", "/dev", MS_NOSUID, NULL},
        {"cgroup2", "cgroup2", CGROUPS, MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL},
        {"9p", "shared", SHARED, MS_NODEV, "trans=virtio,version=9p2000.L,cache=mmap,msize=512000"},
        {"9p", "logs", LOGS, MS_NODEV | MS_NOEXEC, "trans=virtio,version=9p2000.L,cache=none,msize=131072"},
        {"tmpfs", "shm", "/podshm", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777"}};
    // The initramfs can't be pivoted away from; on a file system of our own, containers can.
    mkdir("/base", 0755);
    must(!mount("tmpfs", "/base", "tmpfs", 0, "mode=755,size=1m"), "/base");
    load_modules();
    must(!chdir("/base") && !mount(".", "/", NULL, MS_MOVE, NULL) && !chroot("."), "root");
    mkdir(NEW_ROOT, 0755);
    for (size_t i = 0; i < sizeof MOUNTS / sizeof *MOUNTS; i++) {
        mkdir(MOUNTS[i].target, 0755);
        must(!mount(MOUNTS[i].source, MOUNTS[i].target, MOUNTS[i].type, MOUNTS[i].flags, MOUNTS[i].data),
             MOUNTS[i].target);
    }
    static const char *const CONTROLLERS[] = {"+cpu", "+memory", "+pids", "+io", "+cpuset"};
    mkdir(CGROUPS "/pod", 0755);
    for (size_t i = 0; i < sizeof CONTROLLERS / sizeof *CONTROLLERS; i++) {
        write_file(CGROUPS "/cgroup.subtree_control", CONTROLLERS[i]);
        write_file(CGROUPS "/pod/cgroup.subtree_control", CONTROLLERS[i]);
    }
}

static int listen_to_driver(void) {
    struct if_nameindex *links = if_nameindex();
    unsigned char mac[6];
    char name[IF_NAMESIZE] = "";
    for (struct if_nameindex *link = links; link->if_index; link++)
        if (mac_of(link->if_name, mac) && !memcmp(mac, "\x52\x54\x00\xc0\xff\xee", 6)) strcpy(name, link->if_name);
    if_freenameindex(links);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    char address[] = "10.0.2.15/24";
    must(add_address(fd, -1, name, address) && set_link(fd, name, 0), "the driver's network");
    close(fd);
    int listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in place = {.sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr.s_addr = htonl(INADDR_ANY)};
    must(!bind(listening, (struct sockaddr *)&place, sizeof place) && !listen(listening, 128), "listen");
    return listening;
}

static void *accept_for_ever(void *given) {
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 128 << 10);
    pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
    for (;;) {
        int conn = accept4((intptr_t)given, NULL, NULL, SOCK_CLOEXEC), one = 1;
        if (conn < 0) continue;
        setsockopt(conn, IPPROTO_TCP, 1 /* TCP_NODELAY */, &one, sizeof one);
        pthread_t thread;
        if (pthread_create(&thread, &small, serve_connection, (void *)(intptr_t)conn)) close(conn);
    }
    return NULL;
}

// On the host: the rate of the time-stamp counter, which TCG hands through, and which a guest under load measures wrong.
static int print_tsc_khz(void) {
    struct timespec begun, ended;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    unsigned long long from = __builtin_ia32_rdtsc();
    usleep(50000);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    unsigned long long ticks = __builtin_ia32_rdtsc() - from;
    unsigned long long ns = (ended.tv_sec - begun.tv_sec) * 1000000000ULL + ended.tv_nsec - begun.tv_nsec;
    printf("%llu\n", ticks * 1000000 / ns);
    return 0;
}

int main(int count, char **words) {
    if (count > 1 && !strcmp(words[1], "tsc-khz")) return print_tsc_khz();
    if (getpid() != 1) {
        fprintf(stderr, "this is the first process of a virtual machine\n");
        return 2;
    }
    sigset_t deaths;
    sigemptyset(&deaths);
    sigaddset(&deaths, SIGCHLD);
    sigprocmask(SIG_BLOCK, &deaths, NULL);
    signal(SIGPIPE, SIG_IGN);
    boot();
    pthread_t thread;
    pthread_create(&thread, NULL, make_pod_network, NULL);
    pthread_join(thread, NULL);
    must(pod_network >= 0, "the pod's network");
    int listening = listen_to_driver();
    pthread_create(&thread, NULL, accept_for_ever, (void *)(intptr_t)listening);
    say("ready");
    reap_for_ever();
}
