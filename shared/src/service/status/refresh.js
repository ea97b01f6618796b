'use strict';
// Fetches the page again and again and takes over its contents. Where that fails it says since when they are old.
{
    const EVERY = 5000;
    const state = document.getElementById('refresh');
    let shown = document.getElementById('as-of').textContent;
    let timer;

    const say = (text, isStale) => {
        // A screen reader speaks up when the text changes, so not every time.
        if (state.textContent !== text) state.textContent = text;
        document.body.classList.toggle('stale', isStale);
    };

    const take = (page) => {
        const main = page.querySelector('main');
        const version = (of) => of.querySelector('meta[name=page-version]')?.content;
        if (!main || !version(page)) throw new Error('something else answers there');
        if (version(page) !== version(document)) return location.reload();
        const focused = document.activeElement?.parentElement?.id;
        for (const details of document.querySelectorAll('details[open][id]')) {
            const same = main.querySelector('#' + CSS.escape(details.id));
            if (same) same.open = true;
        }
        document.querySelector('main').replaceWith(main);
        if (focused) document.querySelector('#' + CSS.escape(focused) + ' > summary')?.focus({ preventScroll: true });
        document.title = page.title;
        document.querySelector('link[rel=icon]').href = page.querySelector('link[rel=icon]').href;
        shown = document.getElementById('as-of').textContent;
    };

    const refresh = async () => {
        clearTimeout(timer);
        if (!getSelection().isCollapsed) {
            say('Not refreshed while text is selected. What you see is from ' + shown + '.', false);
        } else {
            try {
                const answer = await fetch(location.pathname, { cache: 'no-store', signal: AbortSignal.timeout(EVERY) });
                if (!answer.ok) throw new Error('it answered ' + answer.status);
                take(new DOMParser().parseFromString(await answer.text(), 'text/html'));
                say('Refreshed every 5 seconds.', false);
            } catch (error) {
                say('STALE: the process does not answer. What you see is from ' + shown + '. Trying again.', true);
                document.title = 'stale: ' + document.title.replace(/^stale: /, '');
            }
        }
        timer = setTimeout(refresh, EVERY);
    };

    document.addEventListener('visibilitychange', () => { if (!document.hidden) refresh(); });
    say('Refreshed every 5 seconds.', false);
    timer = setTimeout(refresh, EVERY);
}
