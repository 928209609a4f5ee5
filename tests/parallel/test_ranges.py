"""What ranks say to each other runs in ranges of the line's and the collective's name, while somebody records."""


def test_every_collective_is_named_by_its_line(ranks):
    spoken = ranks.run("parallel.bodies:named_collectives", world=4, degrees={"ring": 2, "ulysses": 2})
    names = ["ring send", "ring wait", "ulysses all_to_all", "sequence all_gather"]
    # the replica has no other axes than the sequence here, and the weights are of all ranks
    names += ["replica all_reduce", "hsdp all_gather"]
    assert spoken == [[end + name for name in names for end in ("", "end of ")]] * 4
