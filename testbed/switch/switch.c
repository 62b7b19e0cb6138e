/* The emulated core network: a switch in user space that joins TAP devices by links with delay,
 * rate, bounded queues and loss. `switch.py` is the same in Python; `model.py` describes the model.
 * One thread, one loop: it waits for a frame, a command or the next due time, and polls nothing.
 *
 *     switch [--seed N] PORT [PORT ...]     PORT = NAME,DELAY_NS,RATE_BPS,QUEUE_BYTES,LOSS_PPM
 *
 * Standard input is the lease and takes commands (`stats`, `fault PORT KIND VALUE`), standard
 * output gives one JSON object a line. At the end of standard input it exits with 0, and the TAP
 * devices, which exist only as long as it has them open, are gone.
 *
 * Times are CLOCK_MONOTONIC in ns. A frame's due times follow from when it was read and from the
 * frames before it, never from the time of the loop, so lateness does not add up.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/if_tun.h>
#include <malloc.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define ETHERNET_BYTES 14
#define MAX_FRAME_BYTES 65550
#define MAX_PORTS 1024
#define MAX_HELD_BYTES (256LL << 20) /* of all frames under way; more are dropped at the up-link */
#define MAX_LINE_BYTES 4096
#define TX_QUEUE_PACKETS 10000 /* frames the kernel holds while this process is not running */
#define READ_BATCH 64          /* frames of one port before the others and due frames get a turn */
#define WRITE_BATCH 16         /* due frames before new ones are read */
#define LATE_BUCKETS 20000     /* of 1 us */
#define NEVER INT64_MAX
#define PPM 1000000
#define MAX_DELAY_NS 1000000000000LL
#define MAX_RATE_BPS 1000000000000LL
#define MAX_QUEUE_BYTES (1LL << 40)
#define SCHED_PRIORITY 50
#define EXIT_USAGE 2

enum { TIMER_KEY = MAX_PORTS, STDIN_KEY };

struct frame {
    struct frame *next; /* in the down-link's queue */
    int64_t at;         /* when it comes to the down-link; then when it is due */
    uint64_t seq;       /* equal times keep the order in which they were read */
    int len;
    uint8_t data[];
};

struct port {
    char name[IFNAMSIZ];
    int fd; /* -1 once its namespace is gone */
    int64_t delay_ns, rate_bps, queue_bytes, loss_ppm;
    int64_t extra_ns, drop_ppm, duplicate_ppm; /* faults; drop_ppm -1 means loss_ppm */
    bool cut;
    int64_t up_free, down_free; /* when the link has sent all that was given to it */
    struct frame **heap;        /* under way to this port's down-link, by (at, seq) */
    int heap_len, heap_room;
    struct frame *head, *tail; /* in its down-link, `at` is when the last bit is through */
    int64_t up_bytes, up_packets, up_dropped, up_lost, up_queue_max;
    int64_t down_bytes, down_packets, down_dropped, down_lost, down_queue_max;
};

static struct port *ports;
static int num_ports;
static int64_t *last_at; /* per (source, destination): later frames come no earlier */
static int64_t held_bytes, num_packets, late_max_us;
static int64_t late[LATE_BUCKETS + 1];
static uint64_t next_seq, random_state;
static char line[MAX_LINE_BYTES];
static int line_len;
static bool line_too_long;

static void error_line(const char *format, ...) {
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (char *c = text; *c; c++)
        if (*c == '"' || *c == '\\' || *c < ' ' || *c > '~') *c = '?';
    printf("{\"event\":\"error\",\"message\":\"%s\"}\n", text);
    fflush(stdout);
}

static void *must(void *memory) {
    if (!memory) {
        error_line("out of memory");
        exit(EXIT_FAILURE);
    }
    return memory;
}

static int64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* splitmix64; no number is drawn where the answer is certain. */
static bool happens(int64_t ppm) {
    if (ppm <= 0) return false;
    if (ppm >= PPM) return true;
    uint64_t z = random_state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return (int64_t)((z ^ (z >> 31)) % PPM) < ppm;
}

static int64_t loss_ppm(const struct port *p) {
    return p->drop_ppm < 0 ? p->loss_ppm : p->drop_ppm;
}

/* ---- the model: queues, delays, losses ---- */

static int64_t serialise_ns(const struct port *p, int64_t bytes) {
    return p->rate_bps ? (int64_t)((__int128)bytes * 8000000000 / p->rate_bps) : 0;
}

static int64_t waiting_bytes(const struct port *p, int64_t free_at, int64_t now) {
    return free_at > now ? (int64_t)((__int128)(free_at - now) * p->rate_bps / 8000000000) : 0;
}

/* Whether a link takes a packet; an idle one takes any. Moves `free_at` and the high-water mark. */
static bool admit(const struct port *p, int64_t bytes, int64_t now, int64_t *free_at,
                  int64_t *queue_max) {
    int64_t waiting = waiting_bytes(p, *free_at, now);
    if (waiting && waiting + bytes > p->queue_bytes) return false;
    *free_at = max64(*free_at, now) + serialise_ns(p, bytes);
    if (p->rate_bps) *queue_max = max64(*queue_max, waiting + bytes);
    return true;
}

static bool earlier(const struct frame *a, const struct frame *b) {
    return a->at != b->at ? a->at < b->at : a->seq < b->seq;
}

static void heap_push(struct port *p, struct frame *f) {
    if (p->heap_len == p->heap_room) {
        p->heap_room = p->heap_room ? 2 * p->heap_room : 256;
        p->heap = must(realloc(p->heap, (size_t)p->heap_room * sizeof *p->heap));
    }
    int i = p->heap_len++;
    for (int up; i && earlier(f, p->heap[up = (i - 1) / 2]); i = up) p->heap[i] = p->heap[up];
    p->heap[i] = f;
}

static struct frame *heap_pop(struct port *p) {
    struct frame *top = p->heap[0], *f = p->heap[--p->heap_len];
    int i = 0;
    for (int child = 1; child < p->heap_len; child = 2 * i + 1) {
        if (child + 1 < p->heap_len && earlier(p->heap[child + 1], p->heap[child])) child++;
        if (!earlier(p->heap[child], f)) break;
        p->heap[i] = p->heap[child];
        i = child;
    }
    p->heap[i] = f;
    return top;
}

static struct frame *make_frame(const uint8_t *data, int len) {
    struct frame *f = must(malloc(sizeof *f + (size_t)len));
    memcpy(f->data, data, (size_t)len);
    f->len = len;
    held_bytes += (int64_t)sizeof *f + len;
    return f;
}

static void drop_frame(struct frame *f) {
    held_bytes -= (int64_t)sizeof *f + f->len;
    free(f);
}

static void send_to(int src, int dst, const uint8_t *data, int len, int64_t core_at) {
    int64_t *last = &last_at[src * num_ports + dst];
    *last = max64(*last, core_at + ports[dst].delay_ns + ports[dst].extra_ns);
    struct frame *f = make_frame(data, len);
    f->at = *last;
    f->seq = next_seq++;
    heap_push(&ports[dst], f);
}

/* Port i has the address 02:00:00:00:HH:LL with HHLL = i + 1; -1 is all, -2 none. */
static int destination(const uint8_t *mac) {
    static const uint8_t prefix[4] = {2, 0, 0, 0};
    if (mac[0] & 1) return -1;
    int number = mac[4] << 8 | mac[5];
    if (memcmp(mac, prefix, sizeof prefix) || !number || number > num_ports) return -2;
    return number - 1;
}

static void from_device(int src, const uint8_t *data, int len, int64_t now) {
    struct port *p = &ports[src];
    int64_t bytes = len - ETHERNET_BYTES;
    int dst = bytes < 0 ? -2 : destination(data);
    if (p->cut) {
        p->up_lost++;
        return;
    }
    if (dst == -2 || dst == src || held_bytes > MAX_HELD_BYTES ||
        !admit(p, bytes, now, &p->up_free, &p->up_queue_max)) {
        p->up_dropped++;
        return;
    }
    p->up_packets++;
    p->up_bytes += bytes;
    if (happens(loss_ppm(p))) {
        p->up_lost++;
        return;
    }
    int64_t core_at = p->up_free + p->delay_ns + p->extra_ns;
    for (int copies = 1 + happens(p->duplicate_ppm); copies; copies--)
        for (int i = dst < 0 ? 0 : dst; i < (dst < 0 ? num_ports : dst + 1); i++)
            if (i != src) send_to(src, i, data, len, core_at);
}

/* One frame that has come to the down-link: into its queue, with the time when it is through. */
static void into_down_link(struct port *p, struct frame *f) {
    if (!admit(p, f->len - ETHERNET_BYTES, f->at, &p->down_free, &p->down_queue_max)) {
        p->down_dropped++;
        drop_frame(f);
    } else if (happens(loss_ppm(p))) {
        p->down_lost++;
        drop_frame(f);
    } else {
        f->at = p->down_free;
        f->next = NULL;
        if (p->head) p->tail->next = f;
        else p->head = f;
        p->tail = f;
    }
}

static void arrive(struct port *p, int64_t now) {
    while (p->heap_len && p->heap[0]->at <= now) {
        struct frame *f = heap_pop(p), *copy = NULL;
        if (happens(p->duplicate_ppm)) {
            copy = make_frame(f->data, f->len);
            copy->at = f->at;
        }
        into_down_link(p, f);
        if (copy) into_down_link(p, copy);
    }
}

/* When something of this port is due: of a frame still under way, if no other comes before it. */
static int64_t port_due(const struct port *p) {
    if (p->head) return p->head->at;
    if (!p->heap_len) return NEVER;
    const struct frame *f = p->heap[0];
    return max64(f->at, p->down_free) + serialise_ns(p, f->len - ETHERNET_BYTES);
}

static void to_device(struct port *p, int64_t now) {
    struct frame *f = p->head;
    if (!f || f->at > now) return; /* what was due was dropped or lost */
    p->head = f->next;
    if (p->cut || p->fd < 0 || write(p->fd, f->data, (size_t)f->len) != f->len) {
        p->down_lost++;
    } else {
        int64_t late_us = (now - f->at) / 1000;
        late[late_us < LATE_BUCKETS ? late_us : LATE_BUCKETS]++;
        late_max_us = max64(late_max_us, late_us);
        num_packets++;
        p->down_packets++;
        p->down_bytes += f->len - ETHERNET_BYTES;
    }
    drop_frame(f);
}

/* Give the devices what is due, the earliest first; returns when the next frame is due. */
static int64_t deliver(void) {
    for (int n = 0;; n++) {
        int64_t now = clock_ns(), due = NEVER;
        struct port *first = NULL;
        for (struct port *p = ports; p < ports + num_ports; p++) {
            arrive(p, now);
            int64_t at = port_due(p);
            if (at < due) due = at, first = p;
        }
        if (due > now || n == WRITE_BATCH) return due;
        to_device(first, now);
    }
}

/* ---- commands ---- */

static int64_t late_us(double share) {
    int64_t below = 0;
    for (int i = 0; num_packets && i < LATE_BUCKETS; i++)
        if ((double)(below += late[i]) >= share * (double)num_packets) return i;
    return late_max_us;
}

static void print_port(const struct port *p) {
    printf("{\"up_bytes\":%" PRId64 ",\"up_packets\":%" PRId64 ",\"up_dropped\":%" PRId64
           ",\"up_lost\":%" PRId64 ",\"up_queue_max\":%" PRId64 ",\"down_bytes\":%" PRId64
           ",\"down_packets\":%" PRId64 ",\"down_dropped\":%" PRId64 ",\"down_lost\":%" PRId64
           ",\"down_queue_max\":%" PRId64 "}",
           p->up_bytes, p->up_packets, p->up_dropped, p->up_lost, p->up_queue_max, p->down_bytes,
           p->down_packets, p->down_dropped, p->down_lost, p->down_queue_max);
}

static void print_stats(void) {
    printf("{\"event\":\"stats\",\"ports\":[");
    for (int i = 0; i < num_ports; i++) {
        if (i) printf(",");
        print_port(&ports[i]);
    }
    printf("],\"late_us\":{\"p50\":%" PRId64 ",\"p99\":%" PRId64 ",\"max\":%" PRId64
           "},\"packets\":%" PRId64 "}\n",
           late_us(0.5), late_us(0.99), late_max_us, num_packets);
    fflush(stdout);
}

/* A whole number in decimal, nothing around it. */
static bool parse_number(const char *text, int64_t low, int64_t high, int64_t *value) {
    char *end;
    const char *digit = text[0] == '-' ? text + 1 : text;
    errno = 0;
    *value = strtoll(text, &end, 10);
    return *digit >= '0' && *digit <= '9' && !*end && !errno && *value >= low && *value <= high;
}

static void set_fault(struct port *p, const char *kind, const char *text) {
    int64_t value;
    if (!strcmp(kind, "cut") && parse_number(text, 0, 1, &value)) p->cut = value;
    else if (!strcmp(kind, "delay") && parse_number(text, 0, MAX_DELAY_NS, &value))
        p->extra_ns = value;
    else if (!strcmp(kind, "drop") && parse_number(text, -1, PPM, &value)) p->drop_ppm = value;
    else if (!strcmp(kind, "duplicate") && parse_number(text, 0, PPM, &value))
        p->duplicate_ppm = value;
    else {
        error_line("fault %.20s %.20s: unknown kind, or value out of range", kind, text);
        return;
    }
    printf("{\"event\":\"fault\",\"port\":%d,\"kind\":\"%s\"}\n", (int)(p - ports), kind);
    fflush(stdout);
}

static void obey(char *command) {
    static const char blanks[] = " \t\r";
    char *words[5], *rest = NULL;
    int count = 0;
    int64_t port;
    for (char *w; count < 5 && (w = strtok_r(count ? NULL : command, blanks, &rest));)
        words[count++] = w;
    if (count == 1 && !strcmp(words[0], "stats")) print_stats();
    else if (count != 4 || strcmp(words[0], "fault"))
        error_line("expected 'stats' or 'fault PORT KIND VALUE', got '%.40s'",
                   count ? words[0] : "");
    else if (!parse_number(words[1], 0, num_ports - 1, &port))
        error_line("fault %.40s: no such port, expected 0 to %d", words[1], num_ports - 1);
    else set_fault(&ports[port], words[2], words[3]);
}

/* Returns false at the end of standard input. */
static bool read_commands(void) {
    char chunk[MAX_LINE_BYTES];
    ssize_t got = read(STDIN_FILENO, chunk, sizeof chunk);
    for (ssize_t i = 0; i < got; i++) {
        if (chunk[i] != '\n') {
            if (line_len == MAX_LINE_BYTES - 1) line_too_long = true;
            else line[line_len++] = chunk[i];
            continue;
        }
        line[line_len] = 0;
        if (line_too_long) error_line("a command of more than %d bytes", MAX_LINE_BYTES - 1);
        else obey(line);
        line_len = 0;
        line_too_long = false;
    }
    return got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
}

/* ---- start and loop ---- */

static bool parse_port(char *text, struct port *p) {
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
    char *fields[6];
    int count = 0;
    for (char *f; count < 6 && (f = strsep(&text, ","));) fields[count++] = f;
    if (count != 5) return false;
    size_t len = strlen(fields[0]);
    if (!len || len >= IFNAMSIZ || strspn(fields[0], allowed) != len) return false;
    memcpy(p->name, fields[0], len + 1);
    p->drop_ppm = -1;
    return parse_number(fields[1], 0, MAX_DELAY_NS, &p->delay_ns) &&
           parse_number(fields[2], 0, MAX_RATE_BPS, &p->rate_bps) &&
           parse_number(fields[3], 0, MAX_QUEUE_BYTES, &p->queue_bytes) &&
           parse_number(fields[4], 0, PPM, &p->loss_ppm);
}

static bool parse_arguments(int argc, char **argv) {
    int first = 1;
    int64_t seed = 0;
    if (argc > 2 && !strcmp(argv[1], "--seed")) {
        if (!parse_number(argv[2], 0, INT64_MAX, &seed)) return false;
        first = 3;
    }
    random_state = (uint64_t)seed;
    num_ports = argc - first;
    if (num_ports < 1 || num_ports > MAX_PORTS) return false;
    ports = must(calloc((size_t)num_ports, sizeof *ports));
    last_at = must(calloc((size_t)num_ports * (size_t)num_ports, sizeof *last_at));
    for (int i = 0; i < num_ports; i++)
        if (!parse_port(argv[first + i], &ports[i])) return false;
    return true;
}

static bool open_tap(struct port *p, int index, int control) {
    struct ifreq request = {.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_TUN_EXCL)};
    memcpy(request.ifr_name, p->name, IFNAMSIZ);
    p->fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (p->fd < 0 || ioctl(p->fd, TUNSETIFF, &request) < 0) return false;
    request.ifr_qlen = TX_QUEUE_PACKETS;
    if (ioctl(control, SIOCSIFTXQLEN, &request) < 0) return false;
    int number = index + 1;
    request.ifr_hwaddr.sa_family = ARPHRD_ETHER;
    memcpy(request.ifr_hwaddr.sa_data, "\2\0\0\0\0\0", 6);
    request.ifr_hwaddr.sa_data[4] = (char)(number >> 8);
    request.ifr_hwaddr.sa_data[5] = (char)number;
    return ioctl(control, SIOCSIFHWADDR, &request) == 0;
}

static bool watch(int epoll, int fd, uint32_t key) {
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = key};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

/* A port whose namespace is gone stays, without a device: what is sent to it is lost. */
static void read_port(int index) {
    static uint8_t buffer[MAX_FRAME_BYTES];
    struct port *p = &ports[index];
    for (int n = 0; n < READ_BATCH && p->fd >= 0; n++) {
        ssize_t len = read(p->fd, buffer, sizeof buffer);
        if (len < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (len < 0) {
            close(p->fd);
            p->fd = -1;
        } else {
            from_device(index, buffer, (int)len, clock_ns());
        }
    }
}

static void arm(int timer, int64_t due) {
    static int64_t armed = NEVER;
    if (due == armed) return;
    armed = due;
    struct itimerspec when = {0};
    if (due != NEVER) {
        when.it_value.tv_sec = due / 1000000000;
        when.it_value.tv_nsec = due % 1000000000;
    }
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

static int forward(int epoll, int timer) {
    struct epoll_event events[64];
    for (;;) {
        int64_t due = deliver();
        bool behind = due <= clock_ns();
        if (!behind) arm(timer, due);
        int count = epoll_wait(epoll, events, 64, behind ? 0 : -1);
        if (count < 0 && errno != EINTR) return EXIT_FAILURE;
        for (int i = 0; i < count; i++) {
            uint32_t key = events[i].data.u32;
            uint64_t expirations;
            if (key < MAX_PORTS) read_port((int)key);
            else if (key == STDIN_KEY && !read_commands()) return EXIT_SUCCESS;
            else if (key == TIMER_KEY && read(timer, &expirations, sizeof expirations) < 0 &&
                     errno != EAGAIN) /* EAGAIN: it was armed anew */
                return EXIT_FAILURE;
        }
    }
}

static bool real_time(void) {
    struct sched_param priority = {.sched_priority = SCHED_PRIORITY};
    prctl(PR_SET_TIMERSLACK, 1UL);
    mallopt(M_TRIM_THRESHOLD, 64 << 20);
    mallopt(M_MMAP_THRESHOLD, 64 << 20);
    mlockall(MCL_CURRENT);
    return sched_setscheduler(0, SCHED_FIFO, &priority) == 0;
}

int main(int argc, char **argv) {
    if (!parse_arguments(argc, argv)) {
        error_line("usage: switch [--seed N] NAME,DELAY_NS,RATE_BPS,QUEUE_BYTES,LOSS_PPM ...");
        return EXIT_USAGE;
    }
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (control < 0 || epoll < 0 || timer < 0 || !watch(epoll, timer, TIMER_KEY)) {
        error_line("cannot start: %s", strerror(errno));
        return EXIT_FAILURE;
    }
    if (!watch(epoll, STDIN_FILENO, STDIN_KEY)) {
        error_line("standard input must be a pipe: its end ends the switch");
        return EXIT_USAGE;
    }
    for (int i = 0; i < num_ports; i++)
        if (!open_tap(&ports[i], i, control) || !watch(epoll, ports[i].fd, (uint32_t)i)) {
            error_line("TAP device %s: %s", ports[i].name, strerror(errno));
            return EXIT_FAILURE;
        }
    close(control);
    bool fifo = real_time();
    printf("{\"event\":\"ready\",\"backend\":\"c\",\"fifo\":%s}\n", fifo ? "true" : "false");
    fflush(stdout);
    return forward(epoll, timer);
}
