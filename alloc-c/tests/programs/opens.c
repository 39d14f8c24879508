/* Programs that other programs and libraries come into: plugins, and posix_spawn. PLUGIN is the path of one. */
#define _GNU_SOURCE
#include "cases.h"
#include <dlfcn.h>
#include <pthread.h>
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

static void *symbol(void *handle, const char *name)
{
    void *found = dlsym(handle, name);
    CHECK(found != NULL);
    return found;
}

static void *churn(void *handle)
{
    size_t (*churn)(void) = (size_t (*)(void))symbol(handle, "plugin_churn");
    CHECK(churn() == 4999);
    return NULL;
}

/* Blocks cross the border in both directions and stay when the plugin is gone. */
CASE(plugins)
{
    const char *plugin = getenv("PLUGIN");
    CHECK(plugin != NULL);
    for (int round = 0; round < 20; round++) {
        void *handle = dlopen(plugin, round % 2 ? RTLD_LAZY | RTLD_LOCAL : RTLD_NOW | RTLD_GLOBAL);
        if (handle == NULL) {
            fprintf(stderr, "%s\n", dlerror());
            exit(1);
        }
        char *(*text)(const char *) = (char *(*)(const char *))symbol(handle, "plugin_text");
        void (*take)(void *) = (void (*)(void *))symbol(handle, "plugin_free");
        char *theirs = text("of the plugin");
        take(malloc(777));
        take(malloc(2000000));
        pthread_t threads[4];
        for (int i = 0; i < 4; i++)
            CHECK(pthread_create(&threads[i], NULL, churn, handle) == 0);
        for (int i = 0; i < 4; i++)
            CHECK(pthread_join(threads[i], NULL) == 0);
        CHECK(dlclose(handle) == 0);
        CHECK(strcmp(theirs, "of the plugin") == 0);
        free(theirs);
    }
}

static void *allocate_for_ever(void *stop)
{
    while (!*(volatile int *)stop)
        free(malloc(100));
    return NULL;
}

/* Children by posix_spawn, which shares the memory of its parent until it runs the program. */
CASE(spawns)
{
    int stop = 0;
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, allocate_for_ever, &stop) == 0);
    for (int round = 0; round < 100; round++) {
        char *arguments[] = {"sh", "-c", round % 2 ? "exit 7" : "exit 8", NULL};
        pid_t child;
        int status;
        CHECK(posix_spawn(&child, "/bin/sh", NULL, NULL, arguments, environ) == 0);
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == (round % 2 ? 7 : 8));
        CHECK(posix_spawn(&child, "/nonexistent", NULL, NULL, arguments, environ) == ENOENT);
    }
    FILE *pipe = popen("echo from a child", "r");
    char line[100];
    CHECK(pipe != NULL && fgets(line, sizeof line, pipe) != NULL && strcmp(line, "from a child\n") == 0);
    CHECK(pclose(pipe) == 0);
    stop = 1;
    CHECK(pthread_join(thread, NULL) == 0);
}
