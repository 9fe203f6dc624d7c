/* Makes the first FAULT_TIMES calls of FAULT_CALL fail with FAULT_ERRNO; see interposed.py. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/uio.h>
#include <unistd.h>

static int fails(const char *call, const char *path) { /* the first FAULT_TIMES calls on paths that hold FAULT_PATH */
  static int count = 0;
  const char *chosen = getenv("FAULT_CALL"), *part = getenv("FAULT_PATH");
  if (!chosen || strcmp(chosen, call) || !path || !strstr(path, part)) return 0;
  if (part[0] == '/' && strcmp(path, part)) return 0; /* a whole path */
  if (__sync_fetch_and_add(&count, 1) >= atoi(getenv("FAULT_TIMES"))) return 0;
  errno = atoi(getenv("FAULT_ERRNO"));
  return 1;
}
static int fails_on(const char *call, int file) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  path[length < 0 ? 0 : length] = 0;
  return fails(call, path);
}
#define NEXT(type, name) __typeof__(type) next = (__typeof__(type))dlsym(RTLD_NEXT, name)
#define MODE mode_t mode = 0; if (flags & O_CREAT) { va_list a; va_start(a, flags); mode = va_arg(a, mode_t); va_end(a); }
#define OPEN(name) int name(const char *path, int flags, ...) { MODE \
  NEXT(int (*)(const char *, int, ...), #name); \
  return fails(flags & O_CREAT ? "create" : "open", path) ? -1 : next(path, flags, mode); }
OPEN(open) OPEN(open64)
#define LINK(name, parameters, arguments) int name parameters { NEXT(int (*) parameters, #name); \
  return fails("link", to) ? -1 : next arguments; }
LINK(link, (const char *from, const char *to), (from, to))
LINK(linkat, (int d, const char *from, int e, const char *to, int flags), (d, from, e, to, flags))
int fsync(int file) { NEXT(int (*)(int), "fsync"); return fails_on("fsync", file) ? -1 : next(file); }
int flock(int file, int how) { NEXT(int (*)(int, int), "flock"); return fails_on("flock", file) ? -1 : next(file, how); }
DIR *opendir(const char *path) { NEXT(DIR *(*)(const char *), "opendir"); return fails("opendir", path) ? NULL : next(path); }
#define PREADV(name) ssize_t name(int file, const struct iovec *v, int n, off_t at) { \
  NEXT(ssize_t (*)(int, const struct iovec *, int, off_t), #name); return fails_on("preadv", file) ? -1 : next(file, v, n, at); }
PREADV(preadv) PREADV(preadv64)
#define PREADV2(name) ssize_t name(int file, const struct iovec *v, int n, off_t at, int flags) { \
  NEXT(ssize_t (*)(int, const struct iovec *, int, off_t, int), #name); \
  return fails_on("preadv", file) ? -1 : next(file, v, n, at, flags); }
PREADV2(preadv2) PREADV2(preadv64v2)
ssize_t read(int file, void *data, size_t n) {
  NEXT(ssize_t (*)(int, void *, size_t), "read"); return fails_on("read", file) ? -1 : next(file, data, n); }
