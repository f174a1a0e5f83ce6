/* member LIBRARY DATABASE NAME OPTIONS COUNT: see meet.py. A program in C. It ends by closing its
 * handle with sqlite3_close_v2 while a statement is still open, finalizes that one afterwards, and
 * then has as many threads and descriptors as before, but for what the first engine of a process
 * leaves: the idle threads of async-io and futures-timer, and four descriptors of the former. */
#include <dirent.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static int entries(const char *path) {
    DIR *directory = opendir(path);
    int count = 0;
    if (!directory) die(path, "cannot be listed");
    while (readdir(directory)) count++;
    closedir(directory);
    return count;
}

static long ask(sqlite3 *db, const char *sql, const char *first, const char *second) {
    sqlite3_stmt *statement;
    long answer = 0;
    int code;
    if (sqlite3_prepare_v2(db, sql, -1, &statement, NULL)) die(sql, sqlite3_errmsg(db));
    if (first) sqlite3_bind_text(statement, 1, first, -1, SQLITE_TRANSIENT);
    if (second) sqlite3_bind_text(statement, 2, second, -1, SQLITE_TRANSIENT);
    code = sqlite3_step(statement);
    if (code == SQLITE_ROW) answer = (long)sqlite3_column_int64(statement, 0);
    else if (code != SQLITE_DONE) die(sql, sqlite3_errmsg(db));
    sqlite3_finalize(statement);
    return answer;
}

static void until(sqlite3 *db, const char *sql, long expected) {
    time_t start = time(NULL);
    while (ask(db, sql, NULL, NULL) < expected) {
        if (time(NULL) - start > 60) die(sql, "in vain");
        usleep(20000);
    }
}

int main(int argc, char **argv) {
    sqlite3 *db;
    sqlite3_stmt *open;
    char *message = NULL;
    int threads, files;
    time_t start;
    if (argc != 6) die("usage", "member LIBRARY DATABASE NAME OPTIONS COUNT");
    /* The library keeps a few descriptors once it was loaded. */
    if (sqlite3_open(":memory:", &db)) die(":memory:", sqlite3_errmsg(db));
    sqlite3_enable_load_extension(db, 1);
    if (sqlite3_load_extension(db, argv[1], NULL, &message)) die(argv[1], message);
    sqlite3_close(db);
    threads = entries("/proc/self/task");
    files = entries("/proc/self/fd");

    if (sqlite3_open(argv[2], &db)) die(argv[2], sqlite3_errmsg(db));
    sqlite3_busy_timeout(db, 5000);
    sqlite3_enable_load_extension(db, 1);
    if (sqlite3_load_extension(db, argv[1], NULL, &message)) die(argv[1], message);
    ask(db, "SELECT wavesync_join('hosts', 'correct horse battery staple', ?1)", argv[4], NULL);
    until(db, "SELECT count(*) FROM sqlite_schema WHERE name = 'seen'", 1);
    ask(db, "INSERT INTO seen VALUES (?1, sqlite_version())", argv[3], NULL);
    until(db, "SELECT count(*) FROM seen", atol(argv[5]));
    until(db, "SELECT wavesync_wait(1000)", 1);

    if (sqlite3_prepare_v2(db, "SELECT * FROM seen", -1, &open, NULL)) die("seen", sqlite3_errmsg(db));
    if (sqlite3_step(open) != SQLITE_ROW) die("seen", "no row");
    if (sqlite3_close_v2(db)) die("close", "failed");
    if (sqlite3_step(open) != SQLITE_ROW) die("an open statement", "died with its handle");
    sqlite3_finalize(open);
    start = time(NULL);
    while (entries("/proc/self/task") > threads + 2 || entries("/proc/self/fd") > files + 4) {
        if (time(NULL) - start > 5) {
            fprintf(stderr, "before: %d threads, %d descriptors; now: %d, %d\n", threads, files,
                    entries("/proc/self/task"), entries("/proc/self/fd"));
            die("after the last close", "threads or descriptors are left");
        }
        usleep(10000);
    }
    return 0;
}
