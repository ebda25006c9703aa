"""Data sets and the federation: what is read is what was published, and every record has one holder."""

import dataclasses
import gzip
import hashlib
import importlib
import importlib.util
import io
import os
import pickle
import struct
import tarfile
import time
import urllib.error
import urllib.request
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fedacdp.data import (
    adult,
    bank_marketing,
    cifar10,
    credit_default,
    digits,
    fashion_mnist,
    files,
    german,
    images,
    mnist,
    tables,
)
from fedacdp.data.base import DataSet, Source, federate
from fedacdp.data.partition import held_out
from fedacdp.keys import Key
from fedacdp.parts import discover
from fedacdp.users import Examples, Schema

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
PARTS = discover("fedacdp.data", DataSet)
NOT_FETCHED = (
    "digits",
    "car_population",
    "ratings_population",
    "movielens",
)  # made here, embedded, or not ours to fetch
Z = 4.9  # two-sided false alarm 1e-6


@dataclasses.dataclass(frozen=True)
class Cut:
    """A federation of a toy source, for looking at who holds what."""

    held: list[np.ndarray]
    labels: np.ndarray
    group: np.ndarray
    sizes: np.ndarray


def toy(n=420, classes=4, seed=0):
    """A source with unequal classes and two columns, its features being the record's number."""
    rng = Key(seed).fold("toy").rng()
    y = np.minimum(rng.geometric(0.5, n) - 1, classes - 1)
    city = np.array(["Ur", "Rome", "Lima", "Oslo", "Bath"])[rng.choice(5, n, p=[0.02, 0.4, 0.3, 0.2, 0.08])]
    return source_of(y, classes, {"city": city, "planet": np.full(n, "Earth")})


def balanced(n, classes):
    return source_of(np.arange(n) % classes, classes)


def source_of(y, classes, groups=None):
    x = np.arange(len(y), dtype=np.float32)[:, None]
    train = Examples(x, np.asarray(y, dtype=np.int64), Schema((1,), tuple(f"c{i}" for i in range(classes))))
    return Source(train, train, groups or {})


HOW = {"iid": {}, "dirichlet": {"concentration": 1.0}, "sizes": {"spread": 1.0}, "by_column": {}}


def cut(source, seed=0, **fields):
    fields = HOW[fields.get("partition", "iid")] | fields
    federation = federate(digits.Digits(**fields), source, Key(seed))
    return Cut(np.split(federation.order, federation.offsets[1:-1]), source.train.y, federation.group, federation.sizes)


# Who holds what


@pytest.mark.parametrize("users", [1, 7, 420])
@pytest.mark.parametrize("partition", ["iid", "dirichlet", "sizes", "by_column"])
def test_every_record_is_held_exactly_once_and_every_user_has_one(partition, users):
    source = toy()
    column = {"column": "planet" if users == 1 else "city"} if partition == "by_column" else {}
    extreme = {"dirichlet": {"concentration": 0.01}, "sizes": {"spread": 4.0}}.get(partition, {})
    for fields in ({}, extreme):
        held = cut(source, users=users, partition=partition, **column, **fields).held
        assert len(held) == users
        assert min(len(records) for records in held) >= 1
        assert sorted(np.concatenate(held).tolist()) == list(range(len(source.train)))


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
def test_equal_shares_differ_by_at_most_one_record(partition):
    sizes = cut(toy(), users=37, partition=partition).sizes
    assert sizes.max() - sizes.min() == 1


def test_more_users_than_records_is_refused():
    with pytest.raises(ValueError, match=r"data\.users = 421: digits has only 420 training records"):
        cut(toy(), users=421)


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "sizes", "by_column"])
def test_a_cut_depends_on_its_key_only(partition):
    source, fields = toy(), {"users": 30, "partition": partition}
    if partition == "by_column":
        fields["column"] = "city"
    one, same, other = cut(source, **fields), cut(source, **fields), cut(source, seed=1, **fields)
    assert all(np.array_equal(a, b) for a, b in zip(one.held, same.held, strict=True))
    assert np.array_equal(one.group, same.group)
    assert not all(np.array_equal(np.sort(a), np.sort(b)) for a, b in zip(one.held, other.held, strict=True))
    features = Examples(source.train.x + 1, source.train.y, source.train.schema)
    changed = cut(Source(features, toy(seed=5).test, source.groups), **fields)
    assert all(np.array_equal(a, b) for a, b in zip(one.held, changed.held, strict=True))


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "sizes"])
def test_a_users_group_is_its_most_frequent_label(partition):
    result = cut(toy(), users=60, partition=partition)
    for records, group in zip(result.held, result.group, strict=True):
        assert group == f"label=c{np.bincount(result.labels[records]).argmax()}"


def agreement(result):
    """For each user the share of pairs of its records that have the same label."""
    values = []
    for records in result.held:
        counts, m = np.bincount(result.labels[records]), len(records)
        values.append((counts * (counts - 1)).sum() / (m * (m - 1)))
    return np.array(values)


def test_label_skew_grows_as_the_concentration_falls():
    source = balanced(20_000, 10)
    skews = [
        agreement(cut(source, users=1000, partition="dirichlet", concentration=a)).mean() for a in (1e4, 10, 1, 0.1)
    ]
    iid = agreement(cut(source, users=1000)).mean()
    assert iid == pytest.approx(0.1, abs=0.005)
    assert skews[0] == pytest.approx(iid, abs=0.005)
    assert skews[0] < skews[1] < skews[2] < skews[3]
    assert skews[3] > 0.85


@pytest.mark.parametrize("shares", [(0.1,) * 10, (0.88, 0.12)])
def test_labels_of_a_user_are_dirichlet_multinomial(shares):
    """Two labels of a user agree with probability sum_k p_k (a p_k + 1) / (a + 1) for Dirichlet(a p)."""
    a, users, p = 2.0, 2000, np.array(shares)
    y = np.repeat(np.arange(len(p)), np.round(users * 20 * p).astype(int))
    source, expected = source_of(y, len(p)), (p * (a * p + 1)).sum() / (a + 1)

    def off(concentration):
        values = agreement(cut(source, users=users, partition="dirichlet", concentration=concentration))
        return abs(values.mean() - expected) / (values.std() / np.sqrt(users))

    assert off(a) < Z
    assert off(a * len(p)) > Z, "Dirichlet(a, ..., a) must be caught"
    assert off(a / 2) > Z


def served_in_turn(source, users, concentration, seed):
    """The textbook loop: one user after another takes what is left. Its last users get the leftovers."""
    rng = np.random.default_rng(seed)
    left = [list(np.flatnonzero(source.train.y == c)) for c in range(len(source.train.schema.classes))]
    prior = np.array([len(pool) for pool in left]) / len(source.train)
    held = []
    for _ in range(users):
        q, mine = rng.dirichlet(concentration * prior), []
        for _ in range(len(source.train) // users):
            weights = np.where([bool(pool) for pool in left], q + 1e-12, 0)
            mine.append(left[rng.choice(len(left), p=weights / weights.sum())].pop())
        held.append(np.array(mine))
    return Cut(held, source.train.y, np.array([]), np.array([]))


def test_no_user_is_served_before_another():
    source = balanced(200, 4)

    def last_minus_first(results):
        differences = [agreement(result)[-3:].mean() - agreement(result)[:3].mean() for result in results]
        return abs(np.mean(differences)) / (np.std(differences) / np.sqrt(len(differences)))

    fields = {"users": 10, "partition": "dirichlet", "concentration": 4.0}
    assert last_minus_first([cut(source, seed=seed, **fields) for seed in range(100)]) < Z
    assert last_minus_first([served_in_turn(source, 10, 4.0, seed) for seed in range(100)]) > Z


@pytest.mark.parametrize("concentration", [1e-9, 1e9])
def test_extreme_concentrations_are_cut(concentration):
    result = cut(balanced(1000, 10), users=100, partition="dirichlet", concentration=concentration)
    assert sorted(np.concatenate(result.held).tolist()) == list(range(1000))


@pytest.mark.parametrize("spread", [0.25, 1.0])
def test_log_sizes_have_the_spread_that_was_asked_for(spread):
    users = 2000

    def off(asked):
        logs = np.log(cut(balanced(400_000, 2), users=users, partition="sizes", spread=asked).sizes)
        return abs(logs.std() - spread) / (spread / np.sqrt(2 * users))

    assert off(spread) < Z
    assert off(0.85 * spread) > Z
    even = cut(balanced(1001, 2), users=100, partition="sizes", spread=0.0).sizes
    assert even.max() - even.min() == 1


@pytest.mark.parametrize("users", [5, 40, 420])
def test_users_of_a_column_hold_one_value_in_proportion_to_its_records(users):
    source = toy()
    city, result = source.groups["city"], cut(toy(), users=users, partition="by_column", column="city")
    for records, group in zip(result.held, result.group, strict=True):
        assert set(city[records]) == {str(group)}
    for value in np.unique(city):
        mine = result.group == value
        assert mine.sum() == pytest.approx(max(1, users * np.mean(city == value)), abs=2 if users < 420 else 0)
        assert result.sizes[mine].max() - result.sizes[mine].min() <= 1


def test_a_column_that_cannot_be_cut_by_is_refused_by_name():
    with pytest.raises(ValueError, match=r"data\.column: .*needs one; digits has: city, planet"):
        cut(toy(), users=9, partition="by_column")
    with pytest.raises(ValueError, match=r"data\.column = 'town': .*it has: city, planet"):
        cut(toy(), users=9, partition="by_column", column="town")
    with pytest.raises(ValueError, match=r"it has: none"):
        cut(balanced(20, 2), users=9, partition="by_column", column="town")
    with pytest.raises(ValueError, match=r"data\.users = 4: too few .* 5 groups"):
        cut(toy(), users=4, partition="by_column", column="city")


@pytest.mark.parametrize(("n", "users", "partition"), [(10**6, 10**6, "iid"), (60_000, 5_000, "dirichlet")])
def test_large_cuts_take_less_than_two_seconds(n, users, partition):
    source, start = balanced(n, 10), time.process_time()
    federate(digits.Digits(users=users, partition=partition, **HOW[partition]), source, Key(0))
    assert time.process_time() - start < 2


def test_the_held_out_fifth_is_stratified_and_always_the_same():
    labels = np.repeat(["a", "b"], [1000, 50])
    test = held_out(labels, "x")
    assert (test[:1000].sum(), test[1000:].sum()) == (200, 10)
    assert np.array_equal(test, held_out(labels, "x"))
    assert not np.array_equal(test, held_out(labels, "y"))


# Tables

CSV = b'age;job;pay;y\n30;None;1e+03;no\n50;"?";3000;yes\n40;NA;2000;no\n40;NA;2000;no\n'


def people(text=CSV):
    table = tables.parse(text, ";")
    test = np.array([False, False, True, True])
    return tables.encode(tables.rows(table, ~test), tables.rows(table, test), "y", ("no", "yes"), ("age", "pay"))


def test_numbers_are_standardised_and_levels_one_hot():
    source = people()
    age, job, pay = source.train.schema.columns
    assert (age.start, job.start, pay.start, source.train.schema.shape) == (0, 1, 3, (4,))
    assert (age.mean, age.std, pay.mean, pay.std) == (40, 10, 2000, 1000)
    assert job.levels == ("?", "None")
    assert source.train.x.tolist() == [[-1, 0, 1, -1], [1, 1, 0, 1]]
    assert source.test.x.tolist() == [[0, 0, 0, 0]] * 2, "a level that only the test part has is all zeros"
    assert source.train.y.tolist() == [0, 1]
    assert source.train.x.dtype == np.float32
    assert source.groups["job"].tolist() == ["None", "?"]


def test_a_changed_test_row_changes_no_training_number():
    one, other = people(), people(CSV.replace(b"40;NA;2000;no\n", b"99;other;-7;yes\n", 1))
    assert not np.array_equal(one.test.x, other.test.x)
    assert np.array_equal(one.train.x, other.train.x)
    assert one.train.schema == other.train.schema


def test_a_constant_column_stays_finite():
    assert np.isfinite(people(CSV.replace(b"50;", b"30;")).train.x).all()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (CSV + b"1;2\n", "line 6: 2 cells, expected 4"),
        (CSV.replace(b"1e+03", b"?"), "column 'pay'"),
        (CSV.replace(b"1e+03", b"nan"), "column 'pay': 'nan' is not a finite number"),
        (CSV.replace(b";yes", b";maybe"), "labels maybe: not among no, yes"),
        (b"", "no records"),
    ],
)
def test_a_damaged_table_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        people(bad)


# Files: checked before use


def pin_of(data, *places, algorithm="sha256"):
    return files.Pin(places, len(data), hashlib.new(algorithm, data).hexdigest(), algorithm)


def put(folder, pin, data, place=0):
    path = folder / pin.places[place]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "found", [None, CSV[:-1], CSV.replace(b"30", b"31"), b""], ids=["missing", "truncated", "changed", "empty"]
)
def test_a_file_that_is_not_the_published_one_is_refused_in_one_line(tmp_path, monkeypatch, found):
    monkeypatch.setattr(files, "open_url", lambda url: pytest.fail("load() must not download"))
    pin = bank_marketing.FILE
    if found is not None:
        put(tmp_path, pin, found)
    with pytest.raises(ValueError, match=r"fedacdp data fetch bank_marketing.*--data-dir") as caught:
        bank_marketing.BankMarketing(users=1).load(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path / pin.places[0]) in message
    assert pin.digest in message
    assert ("found no file" if found is None else hashlib.sha256(found).hexdigest()) in message


def test_a_file_is_checked_once_per_process_unless_it_changes(tmp_path, monkeypatch):
    pin, checked = pin_of(CSV, "a.csv"), []
    digest_of = files.Pin.digest_of
    monkeypatch.setattr(files.Pin, "digest_of", lambda pin, data: (checked.append(1), digest_of(pin, data))[1])
    path = put(tmp_path, pin, CSV)
    assert files.read(tmp_path, pin, "x") == files.read(tmp_path, pin, "x") == CSV
    assert len(checked) == 1
    path.write_bytes(CSV[::-1])
    later = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))
    with pytest.raises(ValueError, match="expected sha256"):
        files.read(tmp_path, pin, "x")


# Files: fetched


@pytest.fixture
def web(monkeypatch):
    """Addresses and what lies there; anything else is not found."""
    pages = {}

    def open_url(url):
        if url not in pages:
            raise urllib.error.URLError("not found")
        return io.BytesIO(pages[url])

    monkeypatch.setattr(files, "open_url", open_url)
    return pages


def zipped(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def all_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_fetch_takes_the_first_mirror_that_has_the_published_file(tmp_path, web):
    pin, mirrors = pin_of(CSV, "x/a.csv", "y/a.csv"), ["https://gone/", "https://wrong/", "https://right/"]
    web |= {"https://wrong/a.csv": CSV[::-1], "https://right/a.csv": CSV}
    files.fetch(tmp_path, [pin], mirrors)
    assert files.read(tmp_path, pin, "x") == CSV
    assert all_files(tmp_path) == ["x/a.csv"]
    web.clear()
    files.fetch(tmp_path, [pin], mirrors)


@pytest.mark.parametrize(
    ("served", "message"),
    [
        (CSV[::-1], "expected"),
        (CSV[:-3], "expected"),
        (CSV + b"x", "larger than"),
        (None, "not found"),
    ],
    ids=["wrong", "truncated", "oversize", "absent"],
)
def test_fetch_leaves_nothing_of_a_file_that_is_not_the_published_one(tmp_path, web, served, message):
    if served is not None:
        web["https://a/a.csv"] = served
    with pytest.raises(ValueError, match=message) as caught:
        files.fetch(tmp_path, [pin_of(CSV, "x/a.csv")], ["https://a/"])
    assert "\n" not in str(caught.value)
    assert all_files(tmp_path) == []


def test_fetch_repairs_a_damaged_file(tmp_path, web):
    pin = pin_of(CSV, "x/a.csv")
    put(tmp_path, pin, CSV[:-3])
    web["https://a/a.csv"] = CSV
    files.fetch(tmp_path, [pin], ["https://a/"])
    assert files.read(tmp_path, pin, "x") == CSV


def test_fetch_speaks_https_only(tmp_path):
    with pytest.raises(ValueError, match="not an https address"):
        files.fetch(tmp_path, [pin_of(CSV, "x/a.csv")], ["http://a/"])
    request = urllib.request.Request("https://a/a.csv")
    with pytest.raises(OSError, match="not https"):
        files.HttpsOnly().redirect_request(request, io.BytesIO(), 302, "Found", {}, "http://a/a.csv")
    followed = files.HttpsOnly().redirect_request(request, io.BytesIO(), 302, "Found", {}, "https://b/a.csv")
    assert followed is not None


def test_members_of_archives_are_unpacked_one_by_one(tmp_path, web):
    inner = zipped(**{"a.csv": CSV, "huge": b"0" * 10**6})
    web["https://a/b.zip"] = zipped(**{"in.zip": inner, "other.zip": b"not a zip", "c.csv": CSV[::-1]})
    members = {"in.zip/a.csv": pin_of(CSV, "x/a.csv"), "c.csv": pin_of(CSV[::-1], "x/c.csv")}
    files.fetch_archive(tmp_path, "https://a/b.zip", 10**5, members)
    assert all_files(tmp_path) == ["x/a.csv", "x/c.csv"]
    web.clear()
    files.fetch_archive(tmp_path, "https://a/b.zip", 10**5, members)


@pytest.mark.parametrize(
    ("served", "message"),
    [
        (zipped(**{"../a.csv": CSV, "a.csv": CSV}), "refused: .*'../a.csv'"),
        (zipped(**{"/etc/a.csv": CSV, "a.csv": CSV}), "refused"),
        (zipped(**{"c:\\a.csv": CSV, "a.csv": CSV}), "refused"),
        (zipped(**{"a.csv": CSV[::-1]}), "expected"),
        (zipped(**{"a.csv": CSV + b"0" * 10**6}), "a.csv is larger than"),
        (zipped(**{"b.csv": CSV}), "does not contain a.csv"),
        (zipped(**{"a.csv": CSV})[:-20], "not a readable archive"),
        (b"0" * 10**5, "the file is larger than"),
    ],
    ids=["dots", "absolute", "windows", "wrong", "bomb", "absent", "truncated", "oversize"],
)
def test_an_archive_that_is_not_as_expected_is_refused_in_one_line(tmp_path, web, served, message):
    web["https://a/b.zip"] = served
    with pytest.raises(ValueError, match=message) as caught:
        files.fetch_archive(tmp_path, "https://a/b.zip", 10**4, {"a.csv": pin_of(CSV, "x/a.csv")})
    assert "\n" not in str(caught.value)
    assert not (tmp_path.parent / "a.csv").exists()
    assert all_files(tmp_path) == []


@pytest.mark.parametrize("name", [name for name in PARTS if name not in NOT_FETCHED])
def test_fetch_of_every_data_set_asks_an_https_host_and_tells_why_it_failed(tmp_path, web, name):
    with pytest.raises(ValueError, match=r"https://.*not found"):
        PARTS[name](users=1).fetch(tmp_path)


# Data sets


@pytest.mark.parametrize("name", PARTS)
def test_every_data_set_says_where_it_is_from(name):
    text = PARTS[name].__doc__
    for word in ("y is", "Source:", "Licence:"):
        assert word in text


def test_digits_come_with_the_program(tmp_path):
    source = digits.Digits(users=1).load(tmp_path)
    assert (source.train.x.shape, source.test.x.shape) == ((1438, 1, 8, 8), (359, 1, 8, 8))
    assert (source.train.x.dtype, source.train.y.dtype) == (np.float32, np.int64)
    assert (source.train.x.min(), source.train.x.max()) == (0, 1)
    assert source.train.schema.image
    assert np.array_equal(source.train.x, digits.Digits(users=9).load(tmp_path).train.x)
    assert "no download" in digits.Digits(users=1).fetch(tmp_path)


def idx_file(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize(("module", "place"), [(mnist, 0), (mnist, 1), (fashion_mnist, 0), (fashion_mnist, 1)])
def test_idx_images_are_read_where_we_or_torchvision_put_them(tmp_path, monkeypatch, module, place):
    rng, arrays, pins = np.random.default_rng(0), {}, {}
    for part, n in (("train", 6), ("t10k", 2)):
        arrays[f"{part}-images-idx3-ubyte.gz"] = rng.integers(0, 256, (n, 5, 4), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte.gz"] = rng.integers(0, 10, n, dtype=np.uint8)
    for name, array in arrays.items():
        data = gzip.compress(idx_file(array))
        pins[name] = pin_of(data, *module.FILES[name].places)
        put(tmp_path, pins[name], data, place)
    monkeypatch.setattr(module, "FILES", pins)
    (name,) = [name for name in PARTS if PARTS[name].__module__ == module.__name__]
    source = PARTS[name](users=1).load(tmp_path)
    assert source.train.x.shape == (6, 1, 5, 4)
    assert source.train.schema.shape == (1, 5, 4)
    np.testing.assert_array_equal(source.test.x[1, 0] * 255, arrays["t10k-images-idx3-ubyte.gz"][1])
    np.testing.assert_array_equal(source.train.y, arrays["train-labels-idx1-ubyte.gz"])


@pytest.mark.parametrize("cut_off", [0, 3, 9, -1])
def test_a_damaged_idx_file_is_refused(cut_off):
    data = idx_file(np.zeros((2, 3, 3), np.uint8))
    assert images.idx(data, 3).shape == (2, 3, 3)
    with pytest.raises(ValueError, match="idx file"):
        images.idx(data[:cut_off], 3)
    with pytest.raises(ValueError, match="idx file"):
        images.idx(data, 1)


def python2_batch(pixels, labels, flag=b"\x89"):
    """A batch as Python 2 wrote it (protocol 2), instruction for instruction like the published files."""
    rows = len(labels)
    return (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labelsq\x04]q\x05("
        + b"".join(b"K" + bytes([label]) for label in labels)
        + b"eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09("
        + b"K\x01M" + struct.pack("<H", rows) + b"M\x00\x0c\x86cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87Rq\x0b("
        + b"K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb" + flag
        + b"T" + struct.pack("<I", pixels.size) + pixels.tobytes()
        + b"tbU\x09filenamesq\x0c]q\x0dU\x10cat_s_000001.png" + b"q\x0eau."
    )  # fmt: skip


@pytest.fixture
def batches():
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(0, 256, (4, 3072), dtype=np.uint8), rng.integers(0, 10, 4).tolist()) for name in cifar10.MD5
    }


def test_a_batch_of_cifar10_is_read_like_unpickling_reads_it(batches):
    pixels, labels = batches["data_batch_1"]
    data = python2_batch(pixels, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unpickled = pickle.loads(data, encoding="latin-1")
    x, y = cifar10.batch(data)
    np.testing.assert_array_equal(x, unpickled["data"].reshape(-1, 3, 32, 32))
    np.testing.assert_array_equal(x.reshape(4, -1), pixels)
    assert y.tolist() == unpickled["labels"] == labels


def test_a_batch_of_cifar10_is_never_carried_out(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    with pytest.raises(ValueError, match="not a batch"):
        cifar10.batch(pickle.dumps({"labels": Bomb(), "data": Bomb()}, protocol=2))
    assert all_files(tmp_path) == []


def test_a_damaged_batch_of_cifar10_is_refused(batches):
    pixels, labels = batches["test_batch"]
    for data in (
        python2_batch(pixels, labels)[:5000],
        python2_batch(pixels, labels, flag=b"\x88"),
        python2_batch(pixels[:3], labels),
        python2_batch(pixels, [*labels[:-1], 10]),
        b"",
    ):
        with pytest.raises(ValueError, match=r"not a batch of CIFAR-10"):
            cifar10.batch(data)


def test_two_members_of_one_name_are_both_checked(tmp_path, web):
    def tape(*contents):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            for data in contents:
                info = tarfile.TarInfo("a.csv")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return stream.getvalue()

    pin, url = pin_of(CSV, "x/a.csv"), "https://a/b.tar.gz"
    web[url] = tape(CSV, CSV[::-1])
    with pytest.raises(ValueError, match="expected"):
        files.fetch_archive(tmp_path, url, 10**5, {"a.csv": pin})
    assert files.read(tmp_path, pin, "x") == CSV
    web[url] = tape(CSV, CSV)
    files.fetch_archive(tmp_path / "other", url, 10**5, {"a.csv": pin})
    assert files.read(tmp_path / "other", pin, "x") == CSV


def test_cifar10_is_fetched_unpacked_and_read(tmp_path, monkeypatch, web, batches):
    written = {name: python2_batch(*batch) for name, batch in batches.items()}
    pins = {name: pin_of(data, *cifar10.FILES[name].places, algorithm="md5") for name, data in written.items()}
    tape = io.BytesIO()
    with tarfile.open(fileobj=tape, mode="w:gz") as archive:
        for name, data in (written | {"readme.html": b"x"}).items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    web[cifar10.URL] = tape.getvalue()
    monkeypatch.setattr(cifar10, "FILES", pins)
    with pytest.raises(ValueError, match=f"expected {cifar10.ARCHIVE_SHA256}"):
        cifar10.Cifar10(users=1).fetch(tmp_path)
    monkeypatch.setattr(cifar10, "ARCHIVE_SHA256", hashlib.sha256(tape.getvalue()).hexdigest())
    assert "6 files" in cifar10.Cifar10(users=1).fetch(tmp_path)
    source = cifar10.Cifar10(users=1).load(tmp_path)
    assert (source.train.x.shape, source.test.x.shape) == ((20, 3, 32, 32), (4, 3, 32, 32))
    assert source.train.y[4:8].tolist() == batches["data_batch_2"][1]
    np.testing.assert_array_equal(source.test.x.reshape(4, -1) * 255, batches["test_batch"][0])


def test_file_lists_are_those_of_torchvision():
    # Read as text, because importing torchvision takes longer than all other tests here.
    folder = Path(importlib.util.find_spec("torchvision").origin).parent / "datasets"
    text = (folder / "cifar.py").read_text() + (folder / "mnist.py").read_text()
    for name, digest in cifar10.MD5.items():
        assert f'["{name}", "{digest}"]' in text
    assert cifar10.URL in text
    assert mnist.MIRRORS[0] in text
    for name in (*mnist.FILES, *fashion_mnist.FILES):
        assert f'("{name}", ' in text


BANK = (
    b'"age";"job";"marital";"education";"default";"balance";"housing";"loan";"contact";"day";"month";"duration";'
    b'"campaign";"pdays";"previous";"poutcome";"y"\n'
    + b'58;"admin.";"single";"tertiary";"no";-2143;"yes";"no";"unknown";5;"may";261;1;-1;0;"unknown";"no"\n' * 5
    + b'33;"unknown";"married";"unknown";"no";29;"no";"no";"cellular";7;"jun";92;1;-1;0;"other";"yes"\n' * 5
)
ADULT = (
    b"39, State-gov, 77516, HS-grad, 9, Never-married, Sales, Wife, White, Female, 2174, 0, 40, Cuba, <=50K\n"
    b"50, ?, 83311, Masters, 14, Divorced, ?, Husband, Black, Male, 0, 0, 13, ?, >50K\n\n"
)
ADULT_TEST = (
    b"|1x3 Cross validator\n25, Private, 226802, 11th, 7, Divorced, Sales, Own-child, Black, Male, 0, 0, 40, Cuba, "
    b"<=50K.\n50, ?, 83311, Masters, 14, Divorced, ?, Husband, Black, Male, 0, 0, 13, ?, >50K.\n\n"
)
CREDIT = (
    b'"ID","LIMIT_BAL","SEX","EDUCATION","MARRIAGE","AGE","PAY_0","default.payment.next.month"\n'
    + b"1,2e+05,2,2,1,24,-2,1\n" * 5
    + b"2,120000,1,0,2,26,0,0\n" * 5
)
GERMAN = (
    b"A11 6 A34 A43 1169 A65 A75 4 A93 A101 4 A121 67 A143 A152 2 A173 1 A192 A201 1\n" * 5
    + b"A12 48 A32 A410 5951 A61 A73 2 A92 A101 2 A121 22 A143 A152 1 A173 1 A191 A201 2\n" * 5
)


def load_small(folder, monkeypatch, part, **contents):
    """A data set read from small files in the format of the published ones."""
    module = importlib.import_module(part.__module__)
    pins = module.FILES if hasattr(module, "FILES") else {"FILE": module.FILE}
    small = {name: pin_of(data, *pins[name].places) for name, data in contents.items()}
    for name, pin in small.items():
        put(folder, pin, contents[name])
    if hasattr(module, "FILES"):
        monkeypatch.setattr(module, "FILES", small)
    else:
        monkeypatch.setattr(module, "FILE", small["FILE"])
    return part(users=1).load(folder)


def test_bank_marketing_is_read(tmp_path, monkeypatch):
    source = load_small(tmp_path, monkeypatch, bank_marketing.BankMarketing, FILE=BANK)
    assert (len(source.train), len(source.test), source.train.schema.classes) == (8, 2, ("no", "yes"))
    assert source.train.schema.column("job").levels == ("admin.", "unknown")
    assert source.train.schema.column("balance").mean == pytest.approx((29 - 2143) / 2)
    assert set(source.groups) == {
        *("job", "marital", "education", "default", "housing", "loan", "contact", "month", "poutcome")
    }


def test_adult_is_read_with_its_own_test_part(tmp_path, monkeypatch):
    source = load_small(tmp_path, monkeypatch, adult.Adult, **{"adult.data": ADULT, "adult.test": ADULT_TEST})
    assert source.train.y.tolist() == source.test.y.tolist() == [0, 1]
    assert source.train.schema.column("workclass").levels == ("?", "State-gov")
    workclass = source.train.schema.column("workclass")
    assert source.test.x[0, workclass.start : workclass.stop].tolist() == [0, 0]
    np.testing.assert_array_equal(source.test.x[1], source.train.x[1])
    assert source.groups["sex"].tolist() == ["Female", "Male"]


def test_credit_default_is_read_without_the_clients_numbers(tmp_path, monkeypatch):
    source = load_small(tmp_path, monkeypatch, credit_default.CreditDefault, FILE=CREDIT)
    assert [column.name for column in source.train.schema.columns] == [
        *("LIMIT_BAL", "SEX", "EDUCATION", "MARRIAGE", "AGE", "PAY_0")
    ]
    assert source.train.schema.column("LIMIT_BAL").mean == 160_000
    assert source.train.schema.column("EDUCATION").levels == ("0", "2")
    assert sorted(source.train.y.tolist()) == [0] * 4 + [1] * 4


def test_german_is_read_with_the_sex_of_each_applicant(tmp_path, monkeypatch):
    source = load_small(tmp_path, monkeypatch, german.German, FILE=GERMAN)
    assert source.train.schema.classes == ("1", "2")
    assert source.train.schema.column("purpose").levels == ("A410", "A43")
    assert source.groups["sex"].tolist() == [["male", "female"][y] for y in source.train.y]


# The published files, where this machine has them

PUBLISHED = {
    "mnist": (60_000, 10_000, (1, 28, 28), None),
    "fashion_mnist": (60_000, 10_000, (1, 28, 28), None),
    "bank_marketing": (36_169, 9_042, (51,), 5_289),
    "adult": (32_561, 16_281, (108,), 7_841 + 3_846),
    "credit_default": (24_000, 6_000, (33,), 6_636),
    "german": (800, 200, (61,), 300),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_files_are_read(name):
    if not (REAL / name).is_dir():
        pytest.skip(f"needs the published files of {name} in ../shared/data")
    train, test, shape, positive = PUBLISHED[name]
    source = PARTS[name](users=1).load(REAL)
    assert (len(source.train), len(source.test)) == (train, test)
    assert source.train.x.shape == (train, *shape)
    assert source.train.schema.shape == shape
    assert source.train.x.dtype == source.test.x.dtype == np.float32
    if source.train.schema.image:
        assert (source.train.x.min(), source.train.x.max()) == (0, 1)
        assert len(np.unique(source.train.y)) == 10
        return
    assert source.train.y.sum() + source.test.y.sum() == positive
    for column in source.train.schema.columns:
        block = source.train.x[:, column.start : column.stop].astype(float)
        if column.levels:
            assert set(np.unique(block)) <= {0, 1}
            assert (block.sum(axis=1) == 1).all()
            levels = np.array(column.levels)[block.argmax(axis=1)]
            assert np.array_equal(levels, source.groups[column.name])
        else:
            assert block.mean() == pytest.approx(0, abs=1e-5)
            assert block.std() == pytest.approx(1, abs=1e-4)
    assert shape == (source.train.schema.columns[-1].stop,)


def test_pins_are_the_published_checksums():
    if not (REAL / "SHA256SUMS").is_file():
        pytest.skip("needs ../shared/data/SHA256SUMS")
    sums = {path: digest for digest, path in (line.split() for line in (REAL / "SHA256SUMS").read_text().splitlines())}
    for module in (mnist, fashion_mnist, adult):
        for pin in module.FILES.values():
            assert sums[pin.places[0]] == pin.digest
            assert (REAL / pin.places[0]).stat().st_size == pin.limit
    for module in (bank_marketing, credit_default, german):
        assert sums[module.FILE.places[0]] == module.FILE.digest
        assert (REAL / module.FILE.places[0]).stat().st_size == module.FILE.limit


def test_mnist_loads_in_less_than_two_seconds():
    if not (REAL / "mnist").is_dir():
        pytest.skip("needs the published files of mnist in ../shared/data")
    times = []
    for _ in range(2):
        start = time.process_time()
        mnist.Mnist(users=1).load(REAL)
        times.append(time.process_time() - start)
    assert min(times) < 2
