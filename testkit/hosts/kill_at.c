/* Preloaded on a test host: a program dies, as by kill -9, when it has said these words on its output. A signal from outside comes too late
   for what takes a millisecond. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

ssize_t write(int file, const void *text, size_t length)
{
    ssize_t done = syscall(SYS_write, file, text, length);
    char words[256];
    int said = file == STDOUT_FILENO && done > 0 ? open("/etc/kill-at", O_RDONLY | O_CLOEXEC) : -1;
    if (said >= 0) {
        ssize_t count = read(said, words, sizeof words);
        close(said);
        if (count > 0 && memmem(text, done, words, count))
            kill(getpid(), SIGKILL);
    }
    return done;
}
