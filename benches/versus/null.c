/* A second opinion on benches/null_server: the same least work, in C, straight on the kernel.
 *
 * A yardstick made by those who are measured with it proves little. This one shares neither language, event library nor
 * search with the receiver, so that the run can say how far the yardstick is from what anybody would write: one thread,
 * edge-triggered epoll, fixed replies, one send for each wake-up of a connection, the message thrown away. It speaks
 * HELO, EHLO, MAIL, RCPT, DATA, RSET, NOOP and QUIT to a client that makes no mistakes.
 *
 *     cc -O2 -o null null.c && ./null 2525
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ_BYTES = 64 << 10, EVENTS = 1024, LINE_MAX_BYTES = 1024, TAIL = 4 };

static const char GREETING[] = "220 null.example ESMTP\r\n";
static const char EHLO[] = "250-null.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 0\r\n";
static const char OK[] = "250 2.0.0 Ok\r\n";
static const char GO_AHEAD[] = "354 Go\r\n";
static const char BYE[] = "221 2.0.0 Bye\r\n";
static const char WHAT[] = "500 5.5.2 What\r\n";
static const char END[] = "\r\n.\r\n";

struct connection {
    int fd, in_data, closes;
    size_t line_len, replies_len;
    /* The last octets of the message so far: its end may be cut anywhere. */
    char tail[TAIL];
    char line[LINE_MAX_BYTES], replies[4096];
    struct connection *next;
};

static char buf[READ_BYTES];
/* Connections that have ended: memory that was given back would be fetched from the kernel again. */
static struct connection *unused;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void reply(struct connection *c, const char *text, size_t len) {
    if (c->replies_len + len > sizeof c->replies) {
        fputs("more commands in one piece than there is room for replies\n", stderr);
        exit(1);
    }
    memcpy(c->replies + c->replies_len, text, len);
    c->replies_len += len;
}

#define REPLY(c, text) reply(c, text, sizeof text - 1)

static void command(struct connection *c, char first) {
    switch (first & ~0x20) {
    case 'M': case 'R': case 'H': case 'N': REPLY(c, OK); break;
    case 'E': REPLY(c, EHLO); break;
    case 'D':
        c->in_data = 1;
        memcpy(c->tail, "\0\0\r\n", TAIL);
        REPLY(c, GO_AHEAD);
        break;
    case 'Q':
        c->closes = 1;
        REPLY(c, BYE);
        break;
    default: REPLY(c, WHAT);
    }
}

/* Returns how many octets of `in` belong to the message, or -1 when all do and it goes on. */
static ssize_t end_of_data(struct connection *c, const char *in, size_t len) {
    char seam[2 * TAIL];
    size_t head = len < TAIL ? len : TAIL;
    memcpy(seam, c->tail, TAIL);
    memcpy(seam + TAIL, in, head);
    const char *found = memmem(seam, TAIL + head, END, 5);
    if (found)
        return found - seam + 5 - TAIL;
    /* A dot is rarer in mail than a line end. */
    for (const char *at = in + 2; len > 4 && (at = memchr(at, '.', in + len - at)); at++)
        if (at - in + 2 < (ssize_t)len && !memcmp(at - 2, END, 5))
            return at - in + 3;
    memcpy(c->tail, seam + head, TAIL);
    if (head == TAIL)
        memcpy(c->tail, in + len - TAIL, TAIL);
    return -1;
}

static void take(struct connection *c, const char *in, size_t len) {
    while (len > 0 && !c->closes) {
        if (c->in_data) {
            ssize_t used = end_of_data(c, in, len);
            if (used < 0)
                return;
            c->in_data = 0;
            REPLY(c, OK);
            in += used, len -= used;
            continue;
        }
        const char *end = memchr(in, '\n', len);
        if (!end) {
            if (c->line_len + len <= sizeof c->line)
                memcpy(c->line + c->line_len, in, len), c->line_len += len;
            return;
        }
        command(c, c->line_len ? c->line[0] : *in);
        c->line_len = 0;
        len -= end + 1 - in, in = end + 1;
    }
}

/* Returns whether the connection goes on. */
static int serve(struct connection *c, int to_the_end) {
    for (;;) {
        ssize_t len = recv(c->fd, buf, sizeof buf, 0);
        if (len < 0 && errno == EINTR)
            continue;
        if (len == 0 || (len < 0 && errno != EAGAIN))
            return 0;
        if (len < 0)
            break;
        take(c, buf, len);
        if (len < READ_BYTES && !to_the_end)
            break;
    }
    if (c->replies_len) {
        /* A few hundred octets always fit for a client that reads its replies. */
        if (send(c->fd, c->replies, c->replies_len, MSG_NOSIGNAL) != (ssize_t)c->replies_len)
            return 0;
        c->replies_len = 0;
    }
    return !c->closes;
}

static struct connection *opened(int fd) {
    struct connection *c = unused;
    if (c)
        unused = c->next;
    else if (!(c = malloc(sizeof *c)))
        die("malloc");
    c->fd = fd;
    c->in_data = c->closes = 0;
    c->line_len = c->replies_len = 0;
    return c;
}

static void ended(struct connection *c) {
    close(c->fd);
    c->next = unused;
    unused = c;
}

static void accept_all(int epoll, int listener) {
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *c = opened(fd);
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.ptr = c};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
            die("epoll_ctl");
        if (send(fd, GREETING, sizeof GREETING - 1, MSG_NOSIGNAL) < 0)
            ended(c);
    }
    if (errno != EAGAIN && errno != ECONNABORTED)
        die("accept4");
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (argc != 2 || listener < 0 || epoll < 0)
        return fputs("usage: null PORT\n", stderr), 2;
    address.sin_port = htons(atoi(argv[1]));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    /* Connections inherit it. */
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096))
        die("bind");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, events[EVENTS];
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event))
        die("epoll_ctl");
    for (;;) {
        int count = epoll_wait(epoll, events, EVENTS, -1);
        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c) {
                accept_all(epoll, listener);
            } else if (!serve(c, (events[i].events & EPOLLRDHUP) != 0)) {
                ended(c);
            }
        }
    }
}
