/* A TCP proxy that holds each reply back for a fixed time: delay_proxy TARGET_PORT MICROSECONDS
   Prints its port. One thread, one queue: with a constant delay, what came first is due first. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct chunk { struct chunk *next; long long due; int fd; ssize_t size; char data[]; };
static int peer[65536], is_server[65536];

static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void watch(int ep, int fd) {
    struct epoll_event e = { .events = EPOLLIN, .data.fd = fd };
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    long long delay = atoll(argv[2]) * 1000;
    struct sockaddr_in here = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) }, there = here;
    there.sin_port = htons(atoi(argv[1]));
    socklen_t length = sizeof here;
    int listener = socket(AF_INET, SOCK_STREAM, 0), ep = epoll_create1(0);
    if (bind(listener, (void *)&here, sizeof here) || listen(listener, 512)) return 1;
    getsockname(listener, (void *)&here, &length);
    printf("%d\n", ntohs(here.sin_port));
    fflush(stdout);
    watch(ep, listener);
    struct chunk *first = NULL, **last = &first;
    static char buffer[65536];
    for (;;) {
        struct epoll_event events[64];
        struct timespec pause = { 1, 0 };
        if (first) {
            long long left = first->due - now_ns();
            pause.tv_sec = 0;
            pause.tv_nsec = left > 0 ? left : 0;
        }
        int n = epoll_pwait2(ep, events, 64, &pause, NULL);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                int client = accept(listener, NULL, NULL), server = socket(AF_INET, SOCK_STREAM, 0);
                if (client < 0 || connect(server, (void *)&there, sizeof there)) return 1;
                peer[client] = server, peer[server] = client;
                is_server[client] = 0, is_server[server] = 1;
                watch(ep, client);
                watch(ep, server);
                continue;
            }
            ssize_t size = read(fd, buffer, sizeof buffer);
            if (size <= 0) {  /* the client left, or the server did: both ends go; the numbers stay unused */
                epoll_ctl(ep, EPOLL_CTL_DEL, fd, NULL);
                shutdown(peer[fd], SHUT_RDWR);
            } else if (is_server[fd]) {
                struct chunk *c = malloc(sizeof *c + size);
                *c = (struct chunk){ NULL, now_ns() + delay, peer[fd], size };
                memcpy(c->data, buffer, size);
                *last = c, last = &c->next;
            } else if (send(peer[fd], buffer, size, MSG_NOSIGNAL) < 0) {
                shutdown(fd, SHUT_RDWR);
            }
        }
        while (first && first->due <= now_ns()) {
            struct chunk *c = first;
            send(c->fd, c->data, c->size, MSG_NOSIGNAL);
            first = c->next;
            if (!first) last = &first;
            free(c);
        }
    }
}
