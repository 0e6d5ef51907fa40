/* Files as memory, and what happens when they end sooner than they did.
 *
 * The system tells who reads mapped memory behind the end of a file, or from a disk that fails, by
 * SIGBUS, which ends the process. Here the thread goes on where it asked to instead.
 */
#define _GNU_SOURCE
#include "native.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

_Thread_local sigjmp_buf *on_fault __attribute__((tls_model("initial-exec")));

static struct sigaction others;
static pthread_mutex_t changing = PTHREAD_MUTEX_INITIALIZER;

int64_t map_file(int descriptor, int64_t size)
{
    void *address = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, descriptor, 0);
    return address == MAP_FAILED ? 0 : (int64_t)address;
}

void unmap_file(int64_t address, int64_t size)
{
    munmap((void *)address, (size_t)size);
}

void release_file(int64_t address, int64_t size)
{
    madvise((void *)address, (size_t)size, MADV_DONTNEED);
}

static void handle(int number, siginfo_t *info, void *context)
{
    (void)info, (void)context;
    if (on_fault)
        siglongjmp(*on_fault, 1);
    /* Somebody else's fault, and theirs to handle; once, as they may hand it on to us. */
    sigaction(number, &others, NULL);
    others = (struct sigaction){.sa_handler = SIG_DFL};
    raise(number);
}

void catch_faults(void)
{
    struct sigaction found, ours = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGBUS, NULL, &found);
    if ((found.sa_flags & SA_SIGINFO) && found.sa_sigaction == handle)
        return;
    pthread_mutex_lock(&changing);
    sigaction(SIGBUS, NULL, &found);
    if (!(found.sa_flags & SA_SIGINFO) || found.sa_sigaction != handle) {
        others = found;
        sigaction(SIGBUS, &ours, NULL);
    }
    pthread_mutex_unlock(&changing);
}
