# Redis with threads for its connections: redis-benchmark, 150000 commands of all types, a save in a forked child, a
# reload of the whole data and unlinking in the background. The digest of the data is compared.
#
# Debian's redis-server is linked with libjemalloc.so.2, whose malloc the library takes the place of. Its file is that
# of redis-check-rdb, which it is a link to.
# shellcheck shell=bash disable=SC2034,SC2154 # read by, and from, compare.sh
packages=(redis-server redis-tools)
needs=(/usr/bin/redis-server /usr/bin/redis-benchmark /usr/bin/redis-cli)
workers=("redis-check-rdb 2" "redis-benchmark 1")

version() {
    debian_version redis-server
}

prepare() {
    awk '
        # Numbers that are the same in every awk.
        function some(below) { seed = (seed * 16807) % 2147483647; return seed % below }
        BEGIN {
            seed = 4711
            value = sprintf("%3000s", "")
            gsub(" ", "v", value)
            for (i = 0; i < 150000; i++) {
                kind = some(12); key = some(4000)
                if (kind == 0) line = "SET string:" key " " substr(value, 1, some(3000)) "."
                else if (kind == 1) line = "APPEND string:" key " " i
                else if (kind == 2) line = "HSET hash:" key % 500 " field" some(300) " " substr(value, 1, some(100)) "."
                else if (kind == 3) line = "ZADD zset:" key % 500 " " some(100000) " member" some(5000)
                else if (kind == 4) line = "SADD set:" key % 500 " " some(100000)
                else if (kind == 5) line = "RPUSH list:" key % 500 " " substr(value, 1, some(200)) i
                else if (kind == 6) line = "LPOP list:" key % 500
                else if (kind == 7) line = "XADD stream:" key % 100 " " i + 1 "-1 field " i
                else if (kind == 8) line = "DEL string:" key
                else if (kind == 9) line = "INCRBY counter:" key " " some(1000)
                else if (kind == 10) line = "SETRANGE string:" key " " some(20000) " range"
                else line = "HDEL hash:" key % 500 " field" some(300) " field" some(300)
                printf "%s\r\n", line
            }
        }' >commands
}

client() {
    redis-cli -s ./socket "$@"
}

run() {
    serve redis-server --port 0 --unixsocket ./socket --io-threads 2 --io-threads-do-reads yes --save '' --dir . \
        --enable-debug-command local --lazyfree-lazy-user-del yes --appendonly yes --appendfsync no
    wait_until client ping
    redis-benchmark -s ./socket -q --threads 2 -c 40 -n 20000 -P 4 -r 1000 -d 200 -t set,get,hset,sadd,zadd,mset,lrange_100 |
        tee benchmark | tr '\r' '\n' | grep -o '^[A-Z_]*[^:]*: [0-9.]* requests per second' | cut -d: -f1 | sort -u >output/benchmark
    ! grep -i error benchmark
    # These hold random numbers.
    client unlink myzset mylist
    client --pipe <"$input/commands" | grep -v '^All data' >output/pipe
    client dbsize >output/size
    client eval 'local all = {} for i = 1, 20000 do all[i] = ("%d"):rep(i % 50) .. i end
        table.sort(all) return redis.sha1hex(table.concat(all))' 0 >output/script
    client debug digest >output/digest
    client bgrewriteaof
    wait_until eval 'client info persistence | grep aof_rewrite_in_progress:0 && client info persistence | grep aof_rewrite_scheduled:0'
    client save
    client debug reload
    client debug digest >output/digest-reloaded
    cmp output/digest output/digest-reloaded
    client debug loadaof
    client debug digest >output/digest-replayed
    cmp output/digest output/digest-replayed
    client save
    client flushall async
    client set last value
    client dbsize >>output/size
    client config set appendonly no
    cp dump.rdb saved.rdb
    redis-check-rdb saved.rdb | grep -E 'keys read|looks OK' | sed 's/.*\] //' >output/check
    client shutdown nosave || true
    wait_for_end
}
