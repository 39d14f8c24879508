-- Questions whose answers are in one certain order.
pragma cache_size = -40000;
pragma threads = 3;
pragma temp_store = memory;
select c.country, count(distinct p.id), round(sum(v.cost), 3) from visit v join person p on p.id = v.person
    join city c on c.id = v.city where p.born between 1950 and 1980 group by c.country order by c.country;
select p.name, c.name, a.n from (select person, count(*) n from visit group by person order by n desc, person limit 200) a
    join person p on p.id = a.person join city c on c.id = p.city order by a.n desc, p.id;
select id, name from person order by name collate nocase desc, id limit 300 offset 70000;
select city, day, cost, rank() over (partition by city order by cost desc, day, person) place from visit
    where city between 100 and 130 order by city, place limit 1000;
with recursive path(city, length, way) as (
    select 1, 0, '1'
    union select v.city, length + 1, way || '-' || v.city from path join visit v on v.person = path.city * 31 where length < 12
) select length, count(*), min(way), max(way) from path group by length order by length;
select rowid, snippet(words, 0, '[', ']', '...', 6) from words where words match 'abc* OR fgh*' order by rowid limit 100;
select json_group_object(name, json_array(id, country)) from (select * from city order by id limit 500);
select upper(substr(name, 1, 2)), group_concat(id) from (select * from person where id % 97 = 0 order by id) group by 1 order by 1;
select a.id, b.id from person a join person b on a.born = b.born and a.city = b.city and a.id < b.id
    and length(a.note) = length(b.note) order by a.id, b.id limit 500;
select hex(zeroblob(500000)) = replace(hex(zeroblob(500000)), '1', '2');
pragma integrity_check;
.dump city
