#define _GNU_SOURCE
#include "messages.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "calls.h"

#define INLINE (64 << 10)
#define LARGEST (16 << 20)

union control {
    struct cmsghdr header;  // for its alignment
    char room[CMSG_SPACE(MOST_FDS * sizeof(int))];
};

static void take_descriptors(struct message *message, struct msghdr *header)
{
    for (struct cmsghdr *one = CMSG_FIRSTHDR(header); one != NULL; one = CMSG_NXTHDR(header, one)) {
        if (one->cmsg_level == SOL_SOCKET && one->cmsg_type == SCM_RIGHTS) {
            message->fd_count = (int)((one->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            memcpy(message->fds, CMSG_DATA(one), (size_t)message->fd_count * sizeof(int));
        }
    }
}

// The content of a large message, from the memfd that came as its last descriptor.
static char *read_large(struct message *message, size_t *length)
{
    struct stat found;
    ssize_t got = -1;
    char *body;
    int fd;

    if (message->fd_count == 0)
        return NULL;
    fd = message->fds[--message->fd_count];
    if (fstat(fd, &found) < 0 || found.st_size > LARGEST || (body = malloc((size_t)found.st_size + 1)) == NULL) {
        close(fd);
        return NULL;
    }
    for (*length = 0; *length < (size_t)found.st_size; *length += (size_t)got)
        if ((got = pread(fd, body + *length, (size_t)found.st_size - *length, (off_t)*length)) <= 0)
            break;
    close(fd);
    return body;
}

enum received receive(int sock, struct message *message, int flags)
{
    static char packet[INLINE + 1];
    union control control;
    struct iovec part = {packet, sizeof packet};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                            .msg_controllen = sizeof control};
    size_t length;
    ssize_t got;
    char *body;

    memset(message, 0, sizeof *message);
    do {
        got = recvmsg(sock, &header, flags | MSG_CMSG_CLOEXEC);
    } while (got < 0 && errno == EINTR);
    if (got < 0)
        return FAILED;
    take_descriptors(message, &header);
    if (got == 0) {
        message_free(message);
        return ENDED;
    }
    length = (size_t)got;
    if ((header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0 && (body = malloc(length + 1)) != NULL) {
        memcpy(body, packet, length);
        message->object = json_read(&message->document, body, length);
        if (message->object != NULL && json_member(message->object, "memfd") != NULL) {
            json_free(&message->document);
            body = read_large(message, &length);
            message->object = body != NULL ? json_read(&message->document, body, length) : NULL;
        }
        if (message->object != NULL && message->object->kind == OBJECT)
            return RECEIVED;
    }
    message_free(message);
    return BAD;
}

void message_free(struct message *message)
{
    for (int i = 0; i < message->fd_count; i++)
        close(message->fds[i]);
    message->fd_count = 0;
    json_free(&message->document);
    message->object = NULL;
}

static int send_packet(int sock, const char *bytes, size_t length, const int *fds, int fd_count, int flags)
{
    union control control;
    struct iovec part = {(char *)bytes, length};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};

    if (fd_count > 0) {
        memset(&control, 0, sizeof control);
        header.msg_control = &control;
        header.msg_controllen = CMSG_SPACE((size_t)fd_count * sizeof(int));
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN((size_t)fd_count * sizeof(int));
        memcpy(CMSG_DATA(&control.header), fds, (size_t)fd_count * sizeof(int));
    }
    return sendmsg(sock, &header, flags | MSG_NOSIGNAL) < 0 ? -1 : 0;
}

static int send_large(int sock, const struct text *text, const int *fds, int fd_count, int flags)
{
    int memfd = memfd_create("message", MFD_CLOEXEC), all[MOST_FDS], result = -1;
    struct text words = {0};

    if (memfd < 0)
        return -1;
    for (size_t done = 0; done < text->length;) {
        ssize_t written = write(memfd, text->bytes + done, text->length - done);

        if (written <= 0)
            goto end;
        done += (size_t)written;
    }
    memcpy(all, fds, (size_t)fd_count * sizeof(int));
    all[fd_count] = memfd;
    text_add(&words, "{\"memfd\":%zu}", text->length);
    if (!words.failed)
        result = send_packet(sock, words.bytes, words.length, all, fd_count + 1, flags);
    free(words.bytes);
end:
    close(memfd);
    return result;
}

int send_text(int sock, const struct text *text, const int *fds, int fd_count, int flags)
{
    if (text->failed) {
        errno = ENOMEM;
        return -1;
    }
    if (fd_count > MOST_FDS || (fd_count == MOST_FDS && text->length > INLINE)) {
        errno = E2BIG;
        return -1;
    }
    if (text->length > INLINE)
        return send_large(sock, text, fds, fd_count, flags);
    return send_packet(sock, text->bytes, text->length, fds, fd_count, flags);
}
