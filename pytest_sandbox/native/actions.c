#define _GNU_SOURCE
#include "actions.h"

#include <errno.h>
#include <grp.h>
#include <net/if.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "calls.h"

#define ROOT "/root"
#define MAP "/map"  // a user namespace, whose map mounts with MAPS_IDS have
#define IN_ROOT (RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
#define LARGEST_COPY (1 << 20)

const char *failed_path;
int shares_folder = -1;

// The arguments of an action: what is not there, or null, is NULL, 0, or false.

static char *text_of(const struct json *action, int place)
{
    const struct json *one = json_at(action, place);

    return one != NULL && one->kind == STRING ? one->text : NULL;
}

static long long number_of(const struct json *action, int place)
{
    const struct json *one = json_at(action, place);

    return one != NULL ? one->number : 0;
}

static int about(const char *path, int result)
{
    if (result < 0)
        failed_path = path;
    return result;
}

// Closes a descriptor and keeps errno.
static void let_go(int fd)
{
    int error = errno;

    close(fd);
    errno = error;
}

// Places in the new root.

// Makes what is missing of a path, part by part. `inside` is changed, and as it was in the end.
static int make_place(int root, char *inside, bool directory)
{
    int at = root, following;

    for (char *part = inside, *end; *part != '\0'; part = end) {
        char after;

        part += strspn(part, "/");
        if (*part == '\0')
            break;
        end = part + strcspn(part, "/");
        after = *end;
        *end = '\0';
        following = call_openat2(root, inside, O_PATH, IN_ROOT);
        if (following < 0 && errno == ENOENT) {
            int made;

            if (directory || after != '\0')
                made = mkdirat(at, part, 0755);
            else if ((made = openat(at, part, O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0644)) >= 0)
                close(made);
            if (made >= 0)
                following = call_openat2(at, part, O_PATH | O_NOFOLLOW, 0);
        }
        *end = after;
        if (at != root)
            let_go(at);
        if (following < 0)
            return -1;
        at = following;
    }
    return at;
}

// An O_PATH descriptor of a path in the new root.
static int open_place(const char *path, bool directory)
{
    int root = open(ROOT, O_PATH | O_DIRECTORY | O_CLOEXEC), place;
    char *inside;

    if (root < 0)
        return -1;
    path += strspn(path, "/");
    inside = strdup(*path == '\0' ? "." : path);
    if (inside == NULL) {
        let_go(root);
        return -1;
    }
    for (size_t length = strlen(inside); length > 1 && inside[length - 1] == '/'; length--)
        inside[length - 1] = '\0';
    place = call_openat2(root, inside, O_PATH, IN_ROOT);
    if (place < 0 && errno == ENOENT)
        place = make_place(root, inside, directory);
    if (place != root)
        let_go(root);
    free(inside);
    return place;
}

static int enter(const char *path)
{
    int place = open_place(path, true), result;

    if (place < 0)
        return about(path, -1);
    result = fchdir(place);
    let_go(place);
    return about(path, result);
}

static int write_file(const char *path, mode_t mode, const char *text, size_t length)
{
    int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, mode);

    if (fd < 0)
        return about(path, -1);
    while (length > 0) {
        ssize_t written = write(fd, text, length);

        if (written < 0) {
            let_go(fd);
            return about(path, -1);
        }
        text += written;
        length -= (size_t)written;
    }
    return close(fd);
}

// The actions, by name. Each gets itself: its arguments begin at place 1.

static int act_attributes(const struct json *action)
{
    const char *path = text_of(action, 1);

    return about(path, call_mount_setattr(AT_FDCWD, path, 0, (uint64_t)number_of(action, 2), -1));
}

static int act_chdir(const struct json *action)
{
    return about(text_of(action, 1), chdir(text_of(action, 1)));
}

static int act_chmod(const struct json *action)
{
    return about(text_of(action, 1), chmod(text_of(action, 1), (mode_t)number_of(action, 2)));
}

static int act_chown(const struct json *action)
{
    return about(text_of(action, 1),
                 chown(text_of(action, 1), (uid_t)number_of(action, 2), (gid_t)number_of(action, 3)));
}

static int act_copy(const struct json *action)
{
    int root = open(ROOT, O_PATH | O_DIRECTORY | O_CLOEXEC), from, result;
    ssize_t length = 0;
    char *text;

    if (root < 0)
        return about(ROOT, -1);
    text = malloc(LARGEST_COPY);
    if (text == NULL) {
        let_go(root);
        return -1;
    }
    from = call_openat2(root, text_of(action, 1), O_RDONLY | O_NONBLOCK, IN_ROOT);
    if (from >= 0) {
        length = read(from, text, LARGEST_COPY);
        close(from);
    }
    close(root);
    result = write_file(text_of(action, 2), 0644, text, length < 0 ? 0 : (size_t)length);
    free(text);
    return result;
}

static int perform_all(const struct json *actions)
{
    for (const struct json *one = actions->first; one != NULL; one = one->next)
        if (perform(one) < 0)
            return -1;
    return 0;
}

static int act_either(const struct json *action)
{
    return perform_all(json_at(action, 1)) == 0 ? 0 : perform_all(json_at(action, 2));
}

static int act_enter(const struct json *action)
{
    return enter(text_of(action, 1));
}

static int act_file(const struct json *action)
{
    const char *text = text_of(action, 3);

    return write_file(text_of(action, 1), (mode_t)number_of(action, 2), text, strlen(text));
}

static int act_hostname(const struct json *action)
{
    return sethostname(text_of(action, 1), strlen(text_of(action, 1)));
}

static bool is_own_group(gid_t group)
{
    gid_t groups[256];
    int count = getgroups(256, groups);

    for (int i = 0; i < count; i++)
        if (groups[i] == group)
            return true;
    return false;
}

static int act_like(const struct json *action)
{
    const char *path = text_of(action, 1), *source = text_of(action, 2);
    struct timespec times[2];
    struct stat like;
    mode_t mode;

    if (stat(source, &like) < 0)
        return about(source, -1);
    mode = like.st_mode & 07777;
    if (chown(path, like.st_uid, like.st_gid) < 0 && number_of(action, 3) == 0 && like.st_uid != getuid()) {
        mode_t ours = mode & 7;

        if (is_own_group(like.st_gid))
            ours |= mode >> 3 & 7;
        mode = (mode & 07077) | ours << 6;
    }
    times[0] = like.st_atim;
    times[1] = like.st_mtim;
    if (chmod(path, mode) < 0 || utimensat(AT_FDCWD, path, times, 0) < 0)
        return about(path, -1);
    return 0;
}

static int act_link(const struct json *action)
{
    return about(text_of(action, 2), symlink(text_of(action, 1), text_of(action, 2)));
}

static int act_loopback(const struct json *action)
{
    struct ifreq request = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), result;

    (void)action;
    if (fd < 0)
        return -1;
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    result = ioctl(fd, SIOCSIFFLAGS, &request);
    let_go(fd);
    return result;
}

static int act_mask(const struct json *action)
{
    const char *path = text_of(action, 1);
    struct stat found;

    if (stat(path, &found) == 0 && S_ISDIR(found.st_mode))
        return about(path, mount("masked", path, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k"));
    return about(path, mount("/nodes/null", path, NULL, MS_BIND, NULL));
}

static int act_may(const struct json *action)
{
    const struct json *errnos = json_at(action, 1);

    if (perform(json_at(action, 2)) == 0 || errnos->first == NULL)
        return 0;
    for (const struct json *one = errnos->first; one != NULL; one = one->next)
        if (one->number == errno)
            return 0;
    return -1;
}

static int act_mkdir(const struct json *action)
{
    return about(text_of(action, 1), mkdir(text_of(action, 1), (mode_t)number_of(action, 2)));
}

static int act_mount(const struct json *action)
{
    return about(text_of(action, 1), mount(text_of(action, 1), text_of(action, 2), text_of(action, 3),
                                           (unsigned long)number_of(action, 4), text_of(action, 5)));
}

static int act_pivot(const struct json *action)
{
    const char *path = text_of(action, 1);

    if (chdir(path) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
        return about(path, -1);
    return 0;
}

static int act_shares(const struct json *action)
{
    (void)action;
    shares_folder = open("sys/user", O_PATH | O_DIRECTORY | O_CLOEXEC);
    return 0;  // without it they stay at the host's
}

static int set_attributes(int copy, unsigned below, uint64_t attributes)
{
    int namespace = -1, result;

    if ((attributes & MAPS_IDS) != 0 && (namespace = open(MAP, O_RDONLY | O_CLOEXEC)) < 0)
        return about(MAP, -1);
    result = call_mount_setattr(copy, "", AT_EMPTY_PATH | below, attributes, namespace);
    if (namespace >= 0)
        let_go(namespace);
    return result;
}

static int act_mapped(const struct json *action)
{
    const char *path = text_of(action, 1);
    int copy = call_open_tree(AT_FDCWD, path, TREE_CLONE | TREE_CLOEXEC), place, result = -1;

    if (copy < 0)
        return about(path, -1);
    place = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (place >= 0 && set_attributes(copy, 0, MAPS_IDS) == 0)
        result = call_move_mount(copy, place);
    if (place >= 0)
        let_go(place);
    let_go(copy);
    return about(path, result);
}

static int act_tree(const struct json *action)
{
    const char *source = text_of(action, 1), *target = text_of(action, 2);
    unsigned below = number_of(action, 3) ? TREE_RECURSIVE : 0;
    uint64_t attributes = (uint64_t)number_of(action, 4);
    const struct json *kind = json_at(action, 5);
    bool directory = kind->number != 0;
    int copy = call_open_tree(AT_FDCWD, source, TREE_CLONE | TREE_CLOEXEC | below), place, result = -1;
    struct stat found;

    if (copy < 0)
        return about(source, -1);
    if (attributes != 0 && set_attributes(copy, below, attributes) < 0)
        goto end;
    if (kind->kind == NOTHING) {
        if (fstat(copy, &found) < 0)
            goto end;
        directory = S_ISDIR(found.st_mode);
    }
    place = open_place(target, directory);
    if (place >= 0) {
        result = call_move_mount(copy, place);
        let_go(place);
    }
end:
    let_go(copy);
    return about(target, result);
}

static const struct {
    const char *name;
    int (*act)(const struct json *action);
} actions[] = {
    {"attributes", act_attributes},
    {"chdir", act_chdir},
    {"chmod", act_chmod},
    {"chown", act_chown},
    {"copy", act_copy},
    {"either", act_either},
    {"enter", act_enter},
    {"file", act_file},
    {"hostname", act_hostname},
    {"like", act_like},
    {"link", act_link},
    {"loopback", act_loopback},
    {"mapped", act_mapped},
    {"mask", act_mask},
    {"may", act_may},
    {"mkdir", act_mkdir},
    {"mount", act_mount},
    {"pivot", act_pivot},
    {"shares", act_shares},
    {"tree", act_tree},
};
#define COUNT (sizeof actions / sizeof *actions)

int perform(const struct json *action)
{
    const char *name = text_of(action, 0);

    failed_path = NULL;
    for (size_t i = 0; i < COUNT; i++)
        if (strcmp(name, actions[i].name) == 0)
            return actions[i].act(action);
    errno = ENOSYS;
    return -1;
}

void list_actions(void)
{
    for (size_t i = 0; i < COUNT; i++)
        puts(actions[i].name);
}
