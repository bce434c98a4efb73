/* Preloaded into a command: numbers all that changes a folder, and kills the command's process group at one of them.

   Whatever writes (Python, torch, safetensors' Rust, ctypes) goes through these functions of the C library. The count is
   shared by the processes of the command. Environment, read by the constructor and by `killing_begin`:
     KILLING_FOLDER  whose changes count, without links in its path
     KILLING_LOG     takes a line "NUMBER WHAT PATH" of each change, and "0 fsync PATH"
     KILLING_COUNT   a file of eight zero bytes, which is mapped
     KILLING_AT      number of the change that is not made any more; 0 for none
     KILLING_HALF    1: if that change is a write, half of it is made
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX], log_path[PATH_MAX];
static size_t folder_length;
static long kill_at, *count;
static int half;

__attribute__((constructor)) void killing_begin(void) {
  const char *name = getenv("KILLING_FOLDER"), *counter = getenv("KILLING_COUNT");
  if (!name || !counter) return;
  int fd = (int)syscall(SYS_openat, AT_FDCWD, counter, O_RDWR | O_CLOEXEC);
  if (fd < 0) abort();
  count = mmap(NULL, sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (count == MAP_FAILED) abort();
  syscall(SYS_close, fd);
  snprintf(log_path, sizeof log_path, "%s", getenv("KILLING_LOG"));
  kill_at = atol(getenv("KILLING_AT"));
  half = atoi(getenv("KILLING_HALF"));
  snprintf(folder, sizeof folder, "%s", name);
  folder_length = strlen(folder);
}

static int inside(const char *path) {
  return folder_length && !strncmp(path, folder, folder_length) && path[folder_length] == '/';
}

static int fd_path(int fd, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, PATH_MAX - 1);
  path[length < 0 ? 0 : length] = 0;
  return inside(path);
}

static int at_path(int dir, const char *name, char *path) {
  if (!folder_length) return 0;
  if (name[0] == '/') {
    snprintf(path, PATH_MAX, "%s", name);
  } else {
    char base[PATH_MAX];
    if (dir == AT_FDCWD ? !getcwd(base, sizeof base) : (fd_path(dir, base), !base[0])) return 0;
    if (snprintf(path, PATH_MAX, "%s/%s", base, name) >= PATH_MAX) return 0;
  }
  return inside(path);
}

static void tell(long number, const char *what, const char *path) {
  char line[PATH_MAX + 64];
  int length = snprintf(line, sizeof line, "%ld %s %s\n", number, what, path + folder_length + 1);
  int fd = (int)syscall(SYS_openat, AT_FDCWD, log_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  syscall(SYS_write, fd, line, length);
  syscall(SYS_close, fd);
}

static void die(void) {
  kill(0, SIGKILL);
  for (;;) pause();
}

/* Whether half of a change is to be made. */
static int change(const char *what, const char *path) {
  long number = __atomic_add_fetch(count, 1, __ATOMIC_SEQ_CST);
  tell(number, what, path);
  if (number != kill_at) return 0;
  if (half) return 1;
  die();
  return 0;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define CHANGE_AT(dir, name, what) do { \
    char path_[PATH_MAX]; \
    if (at_path(dir, name, path_) && change(what, path_)) die(); \
  } while (0)

static void opening(int dir, const char *name, int flags) {
  char path[PATH_MAX];
  if (!(flags & (O_CREAT | O_TRUNC)) || !at_path(dir, name, path)) return;
  int there = syscall(SYS_faccessat, AT_FDCWD, path, F_OK) == 0;
  if ((!there || (flags & O_TRUNC)) && change(there ? "truncate" : "create", path)) die();
}

#define MODE mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list l; va_start(l, flags); mode = va_arg(l, mode_t); va_end(l); }
int open(const char *name, int flags, ...) { MODE REAL(open); opening(AT_FDCWD, name, flags); return real(name, flags, mode); }
int open64(const char *name, int flags, ...) { MODE REAL(open64); opening(AT_FDCWD, name, flags); return real(name, flags, mode); }
int openat(int dir, const char *name, int flags, ...) { MODE REAL(openat); opening(dir, name, flags); return real(dir, name, flags, mode); }
int openat64(int dir, const char *name, int flags, ...) { MODE REAL(openat64); opening(dir, name, flags); return real(dir, name, flags, mode); }
static int stdio_flags(const char *mode) { return mode[0] == 'w' ? O_CREAT | O_TRUNC : mode[0] == 'a' ? O_CREAT : 0; }
FILE *fopen(const char *name, const char *mode) { REAL(fopen); opening(AT_FDCWD, name, stdio_flags(mode)); return real(name, mode); }
FILE *fopen64(const char *name, const char *mode) { REAL(fopen64); opening(AT_FDCWD, name, stdio_flags(mode)); return real(name, mode); }

ssize_t write(int fd, const void *data, size_t size) {
  REAL(write);
  char path[PATH_MAX];
  if (folder_length && size && fd_path(fd, path) && change("write", path)) { real(fd, data, size / 2); die(); }
  return real(fd, data, size);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t place) {
  REAL(pwrite64);
  char path[PATH_MAX];
  if (folder_length && size && fd_path(fd, path) && change("write", path)) { real(fd, data, size / 2, place); die(); }
  return real(fd, data, size, place);
}
ssize_t writev(int fd, const struct iovec *parts, int num) {
  REAL(writev);
  char path[PATH_MAX];
  if (folder_length && num && fd_path(fd, path) && change("write", path)) { real(fd, parts, num / 2); die(); }
  return real(fd, parts, num);
}
ssize_t sendfile64(int out, int in, off64_t *place, size_t size) {
  REAL(sendfile64);
  char path[PATH_MAX];
  if (folder_length && fd_path(out, path) && change("write", path)) { real(out, in, place, 1); die(); }
  return real(out, in, place, size);
}
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
  REAL(copy_file_range);
  char path[PATH_MAX];
  if (folder_length && fd_path(out, path) && change("write", path)) { real(in, from, out, to, 1, flags); die(); }
  return real(in, from, out, to, size, flags);
}
int ftruncate64(int fd, off64_t size) {
  REAL(ftruncate64);
  char path[PATH_MAX];
  if (folder_length && fd_path(fd, path) && change("truncate", path)) die();
  return real(fd, size);
}
int fsync(int fd) {
  REAL(fsync);
  char path[PATH_MAX];
  if (folder_length && fd_path(fd, path)) tell(0, "fsync", path);
  return real(fd);
}
int rename(const char *old, const char *new) { REAL(rename); CHANGE_AT(AT_FDCWD, old, "rename"); return real(old, new); }
int renameat(int a, const char *old, int b, const char *new) { REAL(renameat); CHANGE_AT(a, old, "rename"); return real(a, old, b, new); }
int renameat2(int a, const char *old, int b, const char *new, unsigned flags) { REAL(renameat2); CHANGE_AT(a, old, "rename"); return real(a, old, b, new, flags); }
int unlink(const char *name) { REAL(unlink); CHANGE_AT(AT_FDCWD, name, "unlink"); return real(name); }
int unlinkat(int dir, const char *name, int flags) { REAL(unlinkat); CHANGE_AT(dir, name, "unlink"); return real(dir, name, flags); }
int remove(const char *name) { REAL(remove); CHANGE_AT(AT_FDCWD, name, "unlink"); return real(name); }
int rmdir(const char *name) { REAL(rmdir); CHANGE_AT(AT_FDCWD, name, "rmdir"); return real(name); }
int symlink(const char *to, const char *name) { REAL(symlink); CHANGE_AT(AT_FDCWD, name, "link"); return real(to, name); }
int symlinkat(const char *to, int dir, const char *name) { REAL(symlinkat); CHANGE_AT(dir, name, "link"); return real(to, dir, name); }
int link(const char *old, const char *name) { REAL(link); CHANGE_AT(AT_FDCWD, name, "link"); return real(old, name); }
int mkdir(const char *name, mode_t mode) { REAL(mkdir); CHANGE_AT(AT_FDCWD, name, "mkdir"); return real(name, mode); }
int mkdirat(int dir, const char *name, mode_t mode) { REAL(mkdirat); CHANGE_AT(dir, name, "mkdir"); return real(dir, name, mode); }
