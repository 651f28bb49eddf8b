/* A library that is preloaded into every program on a test host. It kills the program with SIGKILL right after the program has written the
   text in /etc/kill-at to its standard output. A signal from outside would come too late for a step that takes a millisecond. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

ssize_t write(int file, const void *text, size_t length)
{
    ssize_t done = syscall(SYS_write, file, text, length);
    char trigger[256];
    int trigger_file = file == STDOUT_FILENO && done > 0 ? open("/etc/kill-at", O_RDONLY | O_CLOEXEC) : -1;
    if (trigger_file >= 0) {
        ssize_t count = read(trigger_file, trigger, sizeof trigger);
        close(trigger_file);
        if (count > 0 && memmem(text, done, trigger, count))
            kill(getpid(), SIGKILL);
    }
    return done;
}
