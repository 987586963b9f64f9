"""Play: walk through a world in a browser, go back in time, branch the present. Needs the extra `play`.

In reading order:

controls     what a visitor holds down, as a value; how the camera moves for it
pace         when the next chunk has to be begun
timeline     the moments of a session, and which of them are kept
messages     what a page may say, checked; what it is sent
telling      what a page is told of a session
session      one visitor: the loop from controls to frames
jobs         what a visitor asks for beside walking: starts, jumps, futures, recordings, exports
pilot        an agent that has the controls, and its plan as pictures
pool         one forward for all visitors who want a chunk
worlds       the environment that is played, and the room behind it, if it is known
dummy        a world without a model, as slow as you like
archive      sessions as files, checked as those of strangers
visitors     who is here, how many may be, whose memory goes to disk
link         the way to one page
server       routes, and who may use them
command      `sana-wm play`
page/        what the browser shows; no build step, nothing from outside

Nothing here is imported by `import sana_wm_env`, and nothing but `worlds`, `dummy`, `jobs`, `pilot` and
`archive` imports torch: the page is there while the weights load.
"""
