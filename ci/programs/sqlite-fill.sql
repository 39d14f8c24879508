-- Rows from a generator: the same in every run.
pragma page_size = 4096;
pragma cache_size = -40000;
pragma threads = 3;
pragma temp_store = memory;
create table person (id integer primary key, name text, city integer, born integer, note blob);
create table city (id integer primary key, name text, country text);
create table visit (person integer, city integer, day integer, cost real, primary key (person, day)) without rowid;
create table log (person integer, what text);
create trigger moved after update of city on person begin
    insert into log values (new.id, printf('%d to %d', old.city, new.city));
end;

begin;
with recursive n(i) as (select 1 union all select i + 1 from n where i < 2000)
insert into city select i, printf('city %x', i * 7919 % 65521), char(65 + i % 26, 65 + i % 7) from n;
with recursive n(i, r) as (select 1, 12345 union all select i + 1, (r * 1103515245 + 12345) % 2147483648 from n where i < 150000)
insert into person select i, printf('%s %x', substr('abcdefghijklmnopqrstuvwxyz', 1 + r % 20, 1 + r % 9), r),
    1 + r / 7 % 2000, 1900 + r / 1000 % 120, zeroblob(r / 3 % 120) from n;
with recursive n(i, r) as (select 1, 54321 union all select i + 1, (r * 1103515245 + 12345) % 2147483648 from n where i < 250000)
insert or ignore into visit select 1 + r % 150000, 1 + r / 11 % 2000, r / 100 % 3650, r % 10007 / 7.0 from n;
commit;

create index person_city on person (city, born);
create index person_name on person (name collate nocase);
create index visit_city on visit (city, day, cost);

begin;
update person set city = city % 2000 + 1 where born % 10 = 3;
savepoint halfway;
delete from visit where day % 2;
update person set name = upper(name);
rollback to halfway;
delete from visit where day % 17 = 0;
commit;

create virtual table words using fts5 (body);
insert into words select group_concat(name, ' ') from person where id <= 60000 group by city;
insert into words (words) values ('optimize');
analyze;
vacuum;
select count(*), total(length(note)) from person;
select count(*), total(cost) from visit;
select count(*) from log;
