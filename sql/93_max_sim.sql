-- Sets of vectors compared: MaxSim, the late interaction of ColBERT (Khattab and Zaharia,
-- SIGIR 2020, arXiv:2004.12832): each vector of the query counts with the vector of the
-- document that is most like it.
--
-- In SQL, because the vectors are here: 32 x 100 vectors of 128 dimensions take 0.4 ms. In
-- PL/Python, with Python's own means (a server has no others for certain), they take 17 ms;
-- and to have the document's vectors as text and back, as a worker would get them, takes
-- 3 ms (python -m tests.benchmarks.max_sim, best of 5, PostgreSQL 15 on 2 cores).

CREATE OR REPLACE FUNCTION pgembed.max_sim(
    query @extschema:vector@.vector[], document @extschema:vector@.vector[]
)
RETURNS double precision
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 5000
RETURN (
    SELECT sum((
        SELECT max(-(q.vector OPERATOR(@extschema:vector@.<#>) d.vector))
        FROM unnest(document) AS d (vector)
    ))
    FROM unnest(query) AS q (vector)
);
COMMENT ON FUNCTION pgembed.max_sim(@extschema:vector@.vector[], @extschema:vector@.vector[]) IS
'How alike two sets of vectors are: for each vector of the query its largest inner product with a vector of the document, summed. Of normalised vectors that is the cosine similarity, as in ColBERT. Larger is more alike. Vectors that are NULL do not count; NULL when a side has none; an error when dimensions differ.';
