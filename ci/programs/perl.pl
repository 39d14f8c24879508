# Work of the kinds that Perl is used for; everything printed is the same in every run.
use strict;
use warnings;
use threads;
use threads::shared;
use Thread::Queue;
use Digest::SHA qw(sha256_hex);
use Storable qw(freeze thaw dclone);
use List::Util qw(sum0 reduce);

my $seed = 1;

sub some {
    $seed = ($seed * 16807) % 2147483647;
    return $seed % $_[0];
}

sub word { join '', map { chr(97 + some(26)) } 1 .. 2 + some(8) }

# Words, counted, sorted in several ways.
my @words = map { word() } 1 .. 60_000;
my (%count, %at, %of);
for my $i (0 .. $#words) {
    my $word = $words[$i];
    $count{$word}++;
    push @{ $at{ substr $word, 0, 2 } }, $i;
    $of{ length $word }{ substr $word, 0, 1 }{$word} .= "$i,";
}
my @order = sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count;
print "words: ", scalar @order, " first: @order[0 .. 9]\n";
print "places: ", sha256_hex(join ';', map { "$_@{ $at{$_} }" } sort keys %at), "\n";
for my $length (sort { $a <=> $b } keys %of) {
    print "$length: ", join(' ', map { "$_=" . keys %{ $of{$length}{$_} } } sort keys %{ $of{$length} }), "\n";
}
delete @count{ grep { $count{$_} == 1 } keys %count };
print "more than once: ", sum0(values %count), "\n";

# Regular expressions on a long text.
my $text = join ' ', @words;
my $swaps = () = $text =~ /\b(\w)(\w)\w*\2\1\b/g;
my $doubles = ($text =~ s/(\w)\1/<$1$1>/g);
(my $other = $text) =~ s{\b([aeiou])(\w+)}{ucfirst(reverse $2) . $1}ge;
print "swaps $swaps, doubles $doubles, ", sha256_hex($other), "\n";
my %parsed;
$parsed{$1}{$2} += length $3 while $text =~ /(?<first>[a-m])(\w)<(\w\w)>/g;
print join(' ', map { my $first = $_; map { "$first$_:$parsed{$first}{$_}" } sort keys %{ $parsed{$first} } } sort keys %parsed), "\n";
my @fields = split /[<>]+|\s(?=[aeiou])/, $text;
print scalar @fields, ' ', length($text), "\n";

# Trees of hashes and closures, copied, frozen and thawed.
sub tree {
    my ($depth) = @_;
    return { leaf => word(), numbers => [ map { some(1000) } 1 .. some(20) ] } unless $depth;
    return { map { word() . $_ => tree($depth - 1) } 1 .. 4 };
}

sub measure {
    my ($node) = @_;
    return sum0(@{ $node->{numbers} }) + length $node->{leaf} if exists $node->{leaf};
    return sum0(map { measure($node->{$_}) } keys %$node);
}
my $tree = tree(6);
print "tree: ", measure($tree), ' ', measure(dclone($tree)), ' ', measure(thaw(freeze($tree))), "\n";
my @closures = map { my $n = $_; sub { $n += $_[0]; "$n" x ($n % 7) } } 1 .. 30_000;
print "closures: ", sum0(map { length $_->($_ & 1 ? 3 : 4) } @closures), "\n";
undef $tree;

# Strings that grow, shrink and move.
my $buffer = '';
for my $i (1 .. 60_000) {
    $buffer .= pack 'NnC/a*', $i, $i & 0xffff, 'x' x ($i % 60);
    substr($buffer, 0, 2000, '') if length $buffer > 1_000_000;
}
print "buffer: ", length $buffer, ' ', sha256_hex($buffer), "\n";

# Interpreters in threads: each begins as a copy of all the above.
my $queue = Thread::Queue->new(0 .. 39);
$queue->end;
my %results : shared;
my @workers = map {
    threads->create(sub {
        while (defined(my $job = $queue->dequeue)) {
            $seed = $job + 1;
            my %here;
            $here{ word() } .= some(100) for 1 .. 4000;
            my $line = join ',', map { "$_$here{$_}" } sort keys %here;
            $line =~ s/(\d)(\d)/$2$1/g;
            lock %results;
            $results{$job} = sha256_hex($line);
        }
        return scalar @words;
    })
} 1 .. 5;
print "copies: ", join(' ', map { $_->join } @workers), "\n";
print "$_ $results{$_}\n" for sort { $a <=> $b } keys %results;

# Threads that live shortly and return what they made.
undef @words;
undef $text;
undef @closures;
%at = %of = ();
my @short = map { my $n = $_; threads->create({ context => 'list' }, sub { map { $_ x $n } 1 .. 200 })->join } 1 .. 20;
print "short: ", scalar @short, ' ', sha256_hex("@short"), "\n";
