# nginx with two workers and threads under ab: static files, compression, includes, a proxy to itself with a cache, and
# XSLT, which is a module that is loaded while it runs. Workers are replaced in the middle. The contents are compared,
# and no request may fail.
# shellcheck shell=bash disable=SC2034,SC2154 # read by, and from, compare.sh
packages=(nginx libnginx-mod-http-xslt-filter apache2-utils curl)
needs=(/usr/sbin/nginx /usr/bin/ab /usr/bin/curl /usr/lib/nginx/modules/ngx_http_xslt_filter_module.so)
# The master, the two workers, the two that took their place, and the cache's manager at both times; and ab each time.
workers=("nginx 6" "ab 5" "curl 1")

version() {
    debian_version nginx
}

prepare() {
    local i
    mkdir -p files
    for i in {1..9}; do
        seq "$i" "$i" $((i * 20000)) >"files/numbers$i.txt"
    done
    {
        printf '<?xml version="1.0"?>\n<list>\n'
        for i in {1..300}; do
            printf '<item number="%d"><name>name %d</name><text>%0*d</text></item>\n' "$i" $((i * 7 % 100)) $((i % 60 + 1)) "$i"
        done
        printf '</list>\n'
    } >files/list.xml
    printf '%s\n' '<!--#set var="a" value="b" -->' '<p><!--#echo var="a" --> <!--#include virtual="/numbers1.txt" --></p>' \
        >files/page.shtml
    cp "$programs/nginx.xslt" list.xslt
}

# A configuration for a port; the user is who runs it.
configure() {
    local port=$1
    cat <<END
load_module /usr/lib/nginx/modules/ngx_http_xslt_filter_module.so;
daemon off;
worker_processes 2;
pid nginx.pid;
error_log error.log warn;
thread_pool default threads=4;
$([ "$(id -u)" -ne 0 ] || printf 'user %s;' "$(id -un)")
events { worker_connections 512; }
http {
    access_log access.log;
    types { text/html html shtml; text/plain txt; text/xml xml; }
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    proxy_cache_path cache keys_zone=all:1m;
    gzip on; gzip_types text/plain text/xml; gzip_min_length 100;
    open_file_cache max=100;
    aio threads;
    server {
        listen 127.0.0.1:$port;
        root $input/files;
        location / { }
        location = /page.shtml { ssi on; }
        location = /list.xml { xslt_stylesheet $input/list.xslt; }
        location = /proxied.xml { proxy_pass http://127.0.0.1:$port/list.xml; proxy_cache_bypass 1; }
        location /cached/ { proxy_pass http://127.0.0.1:$port/; proxy_cache all; proxy_cache_valid 200 1h; }
    }
}
END
}

# On the first port that is free.
start() {
    local try
    for try in {1..10}; do
        port=$((RANDOM % 20000 + 10000))
        configure "$port" >nginx.conf
        serve nginx -p "$PWD/" -e "$PWD/error.log" -c nginx.conf
        ! wait_until listens || return 0
        grep -q 'Address already in use' error.log || break
        rm error.log
    done
    cat error.log
    fail 'nginx does not start'
}

listens() {
    [ -s nginx.pid ] && curl --silent --fail --output /dev/null "http://127.0.0.1:$port/numbers9.txt"
}

# Loads one address and notes what does not depend on time.
load_it() {
    local path=$1 requests=$2
    shift 2
    ab -q -n "$requests" -c 20 "$@" "http://127.0.0.1:$port$path" >ab.log
    grep -E '^(Document Path|Document Length|Complete requests|Failed requests|HTML transferred|Non-2xx)' ab.log |
        tee -a output/load
    grep -q '^Failed requests: *0$' ab.log
    grep -q "^Complete requests: *$requests$" ab.log
    ! grep '^Non-2xx' ab.log
}

run() {
    local port path
    start
    for path in /numbers{1..9}.txt /page.shtml /list.xml /proxied.xml /cached/numbers3.txt /cached/list.xml /missing; do
        curl --silent --compressed --write-out '%{http_code} %{size_header} %{content_type}\n' \
            "http://127.0.0.1:$port$path" | sed 's/nginx.[0-9.]*//' >"output/${path//\//_}"
        # As it comes over the wire.
        curl --silent --header 'Accept-Encoding: gzip' --range 100-5000 "http://127.0.0.1:$port$path" >"output/${path//\//_}.part"
    done
    load_it /numbers5.txt 6000 -k
    load_it /list.xml 1500 -k
    kill -HUP "$server"
    load_it /numbers7.txt 600 -H 'Accept-Encoding: gzip'
    load_it /proxied.xml 800
    load_it /cached/page.shtml 2500 -k
    ! grep -E 'alert|emerg|crit|exited on signal' error.log
    nginx -p "$PWD/" -e "$PWD/error.log" -c nginx.conf -s quit
    wait_for_end
}
